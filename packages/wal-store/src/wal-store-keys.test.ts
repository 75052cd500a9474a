/** What encryption promises of the WAL on disk: nothing readable, nothing that can be moved, no frame key and number used for two contents,
 *  keys wrapped anew without touching a byte. */
import assert from 'node:assert/strict';
import { copyFileSync, mkdtempSync, readFileSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { isCode, silentLogger } from '@lakebase/base';
import { decodeDekReference } from '@lakebase/envelope';
import { type Lsn, type ProjectUid, type TimelineId, WAL_SEGMENT_BYTES, lsn } from '@lakebase/ids';
import { FRAME_EPOCH_AT, FRAME_HEADER_BYTES, FRAME_TAG_AT, SEGMENT_HEADER_BYTES, peekFrame } from './segment-format.ts';
import { storedReferences } from './segment-references.ts';
import { type SegmentIo, nodeIo } from './segment-io.ts';
import { syntheticWal } from './testing/synthetic-wal.ts';
import { type TestCiphers, testCiphers } from './testing/test-keys.ts';
import { WalStore } from './wal-store.ts';

const root = mkdtempSync(join(tmpdir(), 'wal-store-keys-'));
after(() => rmSync(root, { recursive: true, force: true }));
const project = 'a'.repeat(32) as ProjectUid;
const timeline = 'b'.repeat(32) as TimelineId;
let dirs = 0;
const newDir = (): string => join(root, `t${dirs++}`);

const START = lsn(3 * WAL_SEGMENT_BYTES - 60_000);
const wal = syntheticWal(START, 200_000, 7);
const SEGMENTS = ['000000010000000000000002', '000000010000000000000003'] as const;

interface Opening {
  readonly ciphers: TestCiphers;
  readonly project?: ProjectUid;
  readonly timeline?: TimelineId;
  readonly io?: SegmentIo;
  readonly flushHint?: Lsn;
}
const open = (dir: string, more: Opening): WalStore =>
  WalStore.open({ dir, project, timeline, startLsn: START, prevRecordLsn: lsn(START - 120), ringBytes: 0, ...more });

function fill(store: WalStore, to: number, step = 5_000): void {
  for (let at: number = store.appendLsn; at < to; at += step) {
    store.append(lsn(at), wal.bytes.subarray(at - START, Math.min(to, at + step) - START));
    store.sync();
  }
}
/** Two segments with WAL to START + 150,000. */
async function filled(ciphers: TestCiphers, more: Partial<Opening> = {}): Promise<string> {
  const dir = newDir();
  const store = open(dir, { ciphers, ...more });
  fill(store, START + 150_000);
  await store.close();
  return dir;
}
/** Everything it will hand out, until it ends or refuses. */
function readable(store: WalStore): Buffer {
  const parts: Buffer[] = [];
  try {
    for (let at: number = store.firstLsn; at < store.flushLsn; at += (parts.at(-1) as Buffer).length)
      parts.push(store.read(lsn(at), 10_000));
  } catch (error) {
    assert.ok(isCode(error, 'CORRUPT'), String(error));
  }
  return Buffer.concat(parts);
}
/** The store must notice, and what it still serves must be a prefix of the truth. */
async function expectRefused(dir: string, ciphers: TestCiphers, what: string): Promise<void> {
  const store = open(dir, { ciphers, flushHint: lsn(START + 150_000) });
  const got = readable(store);
  assert.ok(store.damage !== undefined, `${what}: not noticed`);
  assert.ok(got.length < 150_000 && got.equals(wal.bytes.subarray(store.firstLsn - START, store.firstLsn - START + got.length)), what);
  await store.close();
}

test('no stretch of WAL is on disk as it came', async () => {
  const dir = await filled(testCiphers(project));
  for (const name of readdirSync(dir)) {
    const file = readFileSync(join(dir, name));
    for (let at = 0; at + 24 < 150_000; at += 977)
      assert.equal(file.indexOf(wal.bytes.subarray(at, at + 24)), -1, `${name}, WAL byte ${at}`);
  }
});

test('segments that change places, headers, projects, timelines or names are refused before a byte is served', async () => {
  const ciphers = testCiphers(project);
  const damage: Record<string, (dir: string) => Promise<void> | void> = {
    'swapped within a timeline': (dir) => {
      const [a, b] = SEGMENTS.map((n) => join(dir, n)) as [string, string];
      renameSync(a, `${a}.x`);
      renameSync(b, a);
      renameSync(`${a}.x`, b);
    },
    'header of one on the frames of the other': (dir) => {
      const [a, b] = SEGMENTS.map((n) => readFileSync(join(dir, n))) as [Buffer, Buffer];
      writeFileSync(join(dir, SEGMENTS[1]), Buffer.concat([a.subarray(0, SEGMENT_HEADER_BYTES), b.subarray(SEGMENT_HEADER_BYTES)]));
    },
    'the same segment of another life': async (dir) => {
      copyFileSync(join(await filled(ciphers), SEGMENTS[1]), join(dir, 'x'));
      const [theirs, own] = [readFileSync(join(dir, 'x')), readFileSync(join(dir, SEGMENTS[1]))];
      rmSync(join(dir, 'x'));
      writeFileSync(join(dir, SEGMENTS[1]), Buffer.concat([own.subarray(0, SEGMENT_HEADER_BYTES), theirs.subarray(SEGMENT_HEADER_BYTES)]));
    },
    'of another timeline': async (dir) => {
      const other = await filled(ciphers, { timeline: 'c'.repeat(32) as TimelineId });
      copyFileSync(join(other, SEGMENTS[1]), join(dir, SEGMENTS[1]));
    },
    'of another project': async (dir) => {
      const uid = 'd'.repeat(32) as ProjectUid;
      const other = await filled(testCiphers(uid), { project: uid });
      copyFileSync(join(other, SEGMENTS[1]), join(dir, SEGMENTS[1]));
    },
    'of another project, header patched to this one': async (dir) => {
      const uid = 'd'.repeat(32) as ProjectUid;
      const other = await filled(testCiphers(uid), { project: uid });
      const [theirs, own] = [readFileSync(join(other, SEGMENTS[1])), readFileSync(join(dir, SEGMENTS[1]))];
      writeFileSync(join(dir, SEGMENTS[1]), Buffer.concat([own.subarray(0, SEGMENT_HEADER_BYTES), theirs.subarray(SEGMENT_HEADER_BYTES)]));
    },
    'cut to half': (dir) => {
      const path = join(dir, SEGMENTS[1]);
      writeFileSync(path, readFileSync(path).subarray(0, 60_000));
    },
  };
  for (const [what, hurt] of Object.entries(damage)) {
    const dir = await filled(ciphers);
    await hurt(dir);
    await expectRefused(dir, ciphers, what);
  }
});

test('a truncation that we did not write is refused', async () => {
  const ciphers = testCiphers(project);
  const dir = await filled(ciphers);
  const store = open(dir, { ciphers });
  store.truncate(lsn(START + 120_000));
  await store.close();
  const path = join(dir, SEGMENTS[1]);
  const file = readFileSync(path);
  let at = SEGMENT_HEADER_BYTES;
  for (let f = peekFrame(file, at); f !== undefined && f.kind !== 2; f = peekFrame(file, at)) at = f.next;
  assert.equal(peekFrame(file, at)?.kind, 2);
  file.writeUInt32BE(file.readUInt32BE(at + 20) - 8_000, at + 20);
  // Whoever writes the disk can also make the checksum right.
  const { crc32c } = await import('@lakebase/bytes');
  const crcAt = at + FRAME_TAG_AT + 16;
  file.writeUInt32BE(crc32c(file.subarray(at, crcAt), crc32c(file.subarray(48, 64))), crcAt);
  writeFileSync(path, file);
  const again = open(dir, { ciphers });
  assert.match(again.damage?.message ?? '', /does not open/);
  await again.close();
});

test('no frame number is sealed twice under one epoch, whatever fails in between', async () => {
  const ciphers = testCiphers(project);
  const seen = new Map<string, string>();
  let failing = false;
  const io: SegmentIo = {
    write: (fd, buffer, offset, length, position) => {
      for (let at = 0; at + FRAME_HEADER_BYTES <= length; ) {
        const frame = peekFrame(buffer.subarray(offset, offset + length), at);
        if (frame === undefined || position < SEGMENT_HEADER_BYTES) break;
        const bytes = buffer.subarray(offset + at, offset + frame.payloadOffset + frame.length);
        const name = `${bytes.subarray(FRAME_EPOCH_AT, FRAME_TAG_AT).toString('hex')} ${frame.sequence}`;
        const content = bytes.toString('latin1');
        assert.ok((seen.get(name) ?? content) === content, `frame ${frame.sequence} was sealed twice`);
        seen.set(name, content);
        at = frame.next;
      }
      if (failing) {
        nodeIo.write(fd, buffer, offset, Math.floor(length / 2), position);
        throw Object.assign(new Error('no space'), { code: 'ENOSPC' });
      }
      nodeIo.write(fd, buffer, offset, length, position);
    },
    sync: (fd) => nodeIo.sync(fd),
  };
  const dir = newDir();
  let store = open(dir, { ciphers, io });
  for (let round = 0; round < 12; round++) {
    fill(store, store.appendLsn + 9_000, 1_700);
    failing = true;
    store.append(store.appendLsn, wal.bytes.subarray(store.appendLsn - START, store.appendLsn - START + 800));
    assert.throws(() => store.sync(), { code: 'RESOURCE_EXHAUSTED' });
    failing = false;
    store.append(store.appendLsn, wal.bytes.subarray(store.appendLsn - START, store.appendLsn - START + 800 + round));
    if (round % 3 === 1) {
      await store.close(); // what was not synced is written again after the next opening, in other pieces
      store = open(dir, { ciphers, io });
    }
  }
  store.sync();
  assert.ok(readable(store).equals(wal.bytes.subarray(0, store.flushLsn - START)));
  assert.ok(seen.size > 60);
  await store.close();
});

test('keys are wrapped anew beside the segments: no byte of them changes, and only the newest KEK is needed', async () => {
  const ciphers = testCiphers(project);
  const dir = await filled(ciphers);
  const before = SEGMENTS.map((n) => readFileSync(join(dir, n)));
  const store = open(dir, { ciphers });
  const isOld = (r: Buffer): boolean => decodeDekReference(r).kekVersion < ciphers.keks.length;
  ciphers.keks.push(Buffer.alloc(32, 9));
  await assert.rejects(store.rewrap(isOld, () => Promise.reject(new Error('killed'))));
  assert.equal(storedReferences(dir, silentLogger).filter(isOld).length, 2);
  writeFileSync(join(dir, 'references.tmp'), 'left by a crash');
  assert.equal(await store.rewrap(isOld, (r) => ciphers.rewrap(r)), 2);
  assert.equal(await store.rewrap(isOld, (r) => ciphers.rewrap(r)), 0, 'nothing is left to do');
  fill(store, START + 160_000);
  await store.close();
  for (const [i, n] of SEGMENTS.entries()) {
    const now = readFileSync(join(dir, n));
    const same = i === 0 ? now.length : 60_000;
    assert.ok(now.subarray(0, same).equals((before[i] as Buffer).subarray(0, same)));
  }
  (ciphers.keks[0] as Buffer).fill(0);
  const again = open(dir, { ciphers, flushHint: lsn(START + 160_000) });
  assert.equal(again.damage, undefined);
  assert.ok(readable(again).equals(wal.bytes.subarray(0, 160_000)));
  await again.close();
  // Without its references file the store has no key, and says so instead of serving anything.
  rmSync(join(dir, 'references'));
  const lost = open(dir, { ciphers });
  assert.ok(lost.damage !== undefined);
  await lost.close();
});

test('a key that may not be used is no damage, and what was wiped serves nothing', async () => {
  const ciphers = testCiphers(project);
  const dir = await filled(ciphers);
  ciphers.locked = true;
  assert.throws(() => open(dir, { ciphers }), { code: 'KEY_REVOKED' });
  ciphers.locked = false;
  const store = open(dir, { ciphers });
  assert.equal(store.damage, undefined);
  ciphers.locked = true;
  assert.throws(() => store.read(store.firstLsn, 100), { code: 'KEY_REVOKED' });
  assert.equal(store.damage, undefined);
  store.append(store.appendLsn, wal.bytes.subarray(150_000, 150_500));
  await store.wipe();
  assert.throws(() => store.read(store.firstLsn, 100), { code: 'CLOSED' });
  ciphers.locked = false;
  const again = open(dir, { ciphers });
  assert.ok(readable(again).equals(wal.bytes.subarray(0, 150_000)));
  await again.close();
});
