/** Data keys for storage services: fresh ones, unwrapped ones, re-wrapped references. Octets in, octets out; the caller wipes results.
 *  Invariant: a reference that does not unwrap yields zeros in its place, so that one damaged object does not keep others shut. */
import { FRESH_DEKS_MAX, KEY_BYTES, REFERENCES_MAX, REFERENCE_BYTES } from '@lakebase/api';
import { LakebaseError } from '@lakebase/base';
import { randomSecret, rewrapDek, secretBuffer, unwrapDek, wipe, wrapDek } from '@lakebase/envelope';
import type { ProjectUid } from '@lakebase/ids';
import type { KeyManager } from './key-manager.ts';
import type { CachedKek } from './kms/kek-cache.ts';
import type { ProjectState } from './project-state.ts';
import { type KekRecord, currentKek } from './store/project-record.ts';

/** How many wraps are noted in the record ahead of their use. */
const RESERVE_STEP = 2 ** 20;
/** Random nonces: a KEK is replaced long before 2^32 of them, and refused before that. */
export const WRAPS_MAX: number = 2 ** 31;
const WRAPS_LIMIT = 2 ** 32 - 2 * RESERVE_STEP;

const newest = (p: ProjectState): KekRecord => {
  p.requireUsable();
  return currentKek(p.record) as KekRecord;
};

/** `count × (DEK · reference)`. */
export function freshDeks(manager: KeyManager, project: ProjectUid, count: number): Promise<Buffer> {
  if (!Number.isInteger(count) || count < 1 || count > FRESH_DEKS_MAX)
    throw new LakebaseError('INVALID_ARGUMENT', `count is a whole number from 1 to ${FRESH_DEKS_MAX}`);
  const p = manager.find(project);
  const { version } = newest(p);
  return manager.withKeks(p, [version], (keks) => {
    countWraps(manager, p, count);
    const { key } = keks.get(version) as CachedKek;
    const out = secretBuffer(count * (KEY_BYTES + REFERENCE_BYTES));
    for (let i = 0, at = 0; i < count; i++) {
      const dek = randomSecret();
      at += dek.copy(out, at);
      at += wrapDek(key, version, p.record.account, project, dek).copy(out, at);
      wipe(dek);
    }
    return out;
  });
}

export function unwrapDeks(manager: KeyManager, project: ProjectUid, references: Buffer): Promise<Buffer> {
  const p = manager.find(project);
  const list = split(references);
  return manager.withKeks(p, list.map(kekVersionOf), (keks) => {
    const out = secretBuffer(list.length * KEY_BYTES);
    for (const [i, reference] of list.entries()) {
      const kek = keks.get(kekVersionOf(reference));
      const dek = kek === undefined ? undefined : tolerant(() => unwrapDek(kek.key, p.record.account, project, reference));
      dek?.copy(out, i * KEY_BYTES);
      wipe(dek);
    }
    return out;
  });
}

export function rewrapReferences(manager: KeyManager, project: ProjectUid, references: Buffer): Promise<Buffer> {
  const p = manager.find(project);
  const list = split(references);
  const { version } = newest(p);
  return manager.withKeks(p, [version, ...list.map(kekVersionOf)], (keks) => {
    countWraps(manager, p, list.length);
    const to = keks.get(version) as CachedKek;
    const out = Buffer.alloc(list.length * REFERENCE_BYTES);
    for (const [i, reference] of list.entries()) {
      const from = keks.get(kekVersionOf(reference));
      const fresh =
        from === undefined ? undefined : tolerant(() => rewrapDek(from.key, to.key, version, p.record.account, project, reference));
      fresh?.copy(out, i * REFERENCE_BYTES);
    }
    return out;
  });
}

const kekVersionOf = (reference: Buffer): number => reference.readUInt32BE(1);

function split(references: Buffer): Buffer[] {
  const count = references.length / REFERENCE_BYTES;
  if (!Number.isInteger(count) || count < 1 || count > REFERENCES_MAX)
    throw new LakebaseError('INVALID_ARGUMENT', `the body is 1 to ${REFERENCES_MAX} references of ${REFERENCE_BYTES} bytes`);
  return Array.from({ length: count }, (_, i) => references.subarray(i * REFERENCE_BYTES, (i + 1) * REFERENCE_BYTES));
}

function tolerant<T>(open: () => T): T | undefined {
  try {
    return open();
  } catch (error) {
    if (error instanceof LakebaseError) return undefined;
    throw error;
  }
}

function countWraps(manager: KeyManager, p: ProjectState, count: number): void {
  const kek = newest(p);
  if (p.wraps + count > WRAPS_LIMIT)
    throw new LakebaseError('RESOURCE_EXHAUSTED', `KEK ${kek.version} of project ${p.project} has wrapped all it may: rotate it`);
  p.wraps += count;
  if (p.wraps <= kek.wrapsReserved) return;
  const wrapsReserved = p.wraps + RESERVE_STEP;
  manager.save(p, { keks: p.record.keks.map((k) => (k.version === kek.version ? { ...k, wrapsReserved } : k)) });
}
