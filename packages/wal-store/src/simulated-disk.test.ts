/** The store on a disk that lies (faults F6, F9, F10, F11), seeded. After every fault: what had been acknowledged is there byte for byte, or the store says
 *  that it is not; nothing else is ever served; and once damage is given up, everything can be copied again and stays. */
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { LakebaseError } from '@lakebase/base';
import { type Lsn, type ProjectUid, type TimelineId, WAL_SEGMENT_BYTES, lsn } from '@lakebase/ids';
import { SEGMENT_HEADER_BYTES } from './segment-format.ts';
import { SimulatedDisk } from './testing/simulated-disk.ts';
import { syntheticWal } from './testing/synthetic-wal.ts';
import { testCiphers } from './testing/test-keys.ts';
import { WalStore } from './wal-store.ts';

const root = mkdtempSync(join(tmpdir(), 'wal-disk-'));
after(() => rmSync(root, { recursive: true, force: true }));
const project = 'a'.repeat(32) as ProjectUid;
const timeline = 'b'.repeat(32) as TimelineId;
const ciphers = testCiphers(project);
const SEEDS = Number(process.env['LAKEBASE_SEEDS'] ?? (process.env['LAKEBASE_FULL'] === '1' ? 2_000 : 12));
const START = lsn(3 * WAL_SEGMENT_BYTES - 60_000);
const wal = syntheticWal(START, 400_000, 7);
const slice = (from: number, to: number): Buffer => wal.bytes.subarray(from - START, to - START);

function open(dir: string, io: SimulatedDisk, flushHint: Lsn): WalStore {
  return WalStore.open({ dir, project, timeline, ciphers, startLsn: START, prevRecordLsn: lsn(START - 120), ringBytes: 0, io, flushHint });
}

/** Everything it serves is right; returns how far it serves. */
function check(store: WalStore): Lsn {
  const end = store.damage?.lsn ?? store.flushLsn;
  for (let at: number = store.firstLsn; at < end; ) {
    try {
      const part = store.read(lsn(at), 50_000);
      assert.ok(part.equals(slice(at, at + part.length)), `wrong bytes at ${at}`);
      at += part.length;
    } catch (error) {
      assert.ok(error instanceof LakebaseError && error.code === 'CORRUPT', String(error));
      const hole = [...store.holes.keys()].find((n) => Math.floor(at / WAL_SEGMENT_BYTES) === n);
      if (hole === undefined) return store.damage?.lsn ?? lsn(at);
      at = (hole + 1) * WAL_SEGMENT_BYTES;
    }
  }
  return end;
}

/** As a member does: holes from a peer, damage given up and copied again. */
function repair(store: WalStore, acknowledged: number): void {
  check(store);
  for (const n of [...store.holes.keys()]) {
    const from = store.holeStart(n);
    store.replaceHole(n, slice(from, (n + 1) * WAL_SEGMENT_BYTES));
  }
  if (store.damage !== undefined) store.discardDamage();
  for (let at: number = store.appendLsn; at < acknowledged; at = store.appendLsn) {
    store.append(lsn(at), slice(at, Math.min(acknowledged, at + 20_000)));
    store.sync();
  }
  assert.equal(check(store), store.flushLsn);
  assert.equal(store.damage, undefined);
  assert.equal(store.holes.size, 0);
}

type Step = 'write' | 'cut' | 'failSync' | 'failWrite' | 'abort' | 'truncate' | 'rot' | 'misdirect' | 'lose' | 'short';

function run(seed: number, steps: readonly Step[]): void {
  let state = seed * 2_654_435_761;
  const random = (n: number): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 0x1_0000_0000) * n);
  };
  const dir = join(root, `d${seed}-${random(1_000_000)}`);
  const disk = new SimulatedDisk(seed);
  let store = open(dir, disk, START);
  let acknowledged: number = START;
  const append = (): void => {
    const to = Math.min(wal.end, store.appendLsn + 1 + random(30_000));
    store.append(store.appendLsn, slice(store.appendLsn, to));
  };
  for (let i = 0; i < 25; i++) {
    const step = steps[random(steps.length)] as Step;
    const lies = step === 'rot' || step === 'misdirect' || step === 'lose' || step === 'short';
    if (step === 'failSync') disk.faults.failSync = true;
    if (step === 'failWrite') disk.faults.failWrite = true;
    if (step === 'misdirect') disk.faults.misdirect = 512 * (1 + random(40));
    if (step === 'lose') disk.faults.loseWrite = true;
    if (step === 'truncate') {
      const at = lsn(Math.max(START, acknowledged - random(20_000)));
      store.truncate(at);
      acknowledged = at;
    } else if (store.appendLsn < wal.end) {
      try {
        append();
        if (step === 'abort') store.abort();
        else acknowledged = store.sync();
      } catch (error) {
        assert.ok(error instanceof LakebaseError, String(error));
        // What a segment's end synced on the way counts.
        acknowledged = store.flushLsn;
        if (store.broken) store.heal();
      }
    }
    assert.equal(store.flushLsn, Math.max(acknowledged, store.flushLsn));
    acknowledged = Math.max(acknowledged, store.flushLsn);
    disk.faults.failSync = false;
    disk.faults.failWrite = false;
    disk.faults.loseWrite = false;
    delete disk.faults.misdirect;
    if (step !== 'cut' && !lies) continue;
    void store.close();
    disk.powerCut();
    const files = readdirSync(dir).filter((f) => /^[0-9A-F]{24}$/.test(f));
    const victim = join(dir, files[random(files.length)] as string);
    if (step === 'rot') disk.rot(victim, random(2) === 0 ? 0 : SEGMENT_HEADER_BYTES);
    if (step === 'short') disk.cut(victim);
    store = open(dir, disk, lsn(acknowledged));
    const end = check(store);
    if (!lies) {
      assert.equal(store.damage, undefined, `a power cut is no damage: ${store.damage?.message}`);
      assert.ok(end >= acknowledged, `acknowledged WAL is gone: ${end} < ${acknowledged}`);
      // Bytes that were never acknowledged may have made it.
      acknowledged = end;
    } else if (end < acknowledged) assert.ok(store.damage !== undefined, 'lost, and nobody says so');
    repair(store, acknowledged);
    acknowledged = store.flushLsn;
  }
  void store.close();
  disk.powerCut();
  store = open(dir, disk, lsn(acknowledged));
  assert.ok(check(store) >= acknowledged);
  void store.close();
  rmSync(dir, { recursive: true, maxRetries: 5 });
}

describe(`a disk that lies, ${SEEDS} seeds`, () => {
  test('power cuts, failed syncs and writes, aborts, truncations: what was acknowledged is there', () => {
    for (let seed = 1; seed <= SEEDS; seed++) {
      try {
        run(seed, ['write', 'write', 'write', 'cut', 'failSync', 'failWrite', 'abort', 'truncate']);
      } catch (error) {
        throw new Error(`seed ${seed}: ${String(error)}`, { cause: error });
      }
    }
  });

  test('bit rot, misdirected, lost and cut off writes as well: found, told, repaired, never served', () => {
    for (let seed = 1; seed <= SEEDS; seed++) {
      try {
        run(seed, ['write', 'write', 'write', 'cut', 'failSync', 'rot', 'misdirect', 'lose', 'short']);
      } catch (error) {
        throw new Error(`seed ${seed}: ${String(error)}`, { cause: error });
      }
    }
  });
});
