/** WAL under fresh data keys: what is read stays what it was, through appends, truncations and kills; the old KEK can go. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { silentLogger } from '@lakebase/base';
import { decodeDekReference, randomSecret } from '@lakebase/envelope';
import { type Lsn, type ProjectUid, type TimelineId, WAL_SEGMENT_BYTES, lsn } from '@lakebase/ids';
import { MemoryStore } from '@lakebase/object-store/testing';
import { SEGMENT_HEADER_BYTES, decodeSegmentHeader } from './segment-format.ts';
import { SEGMENT_NAME } from './segment-references.ts';
import { syntheticWal } from './testing/synthetic-wal.ts';
import { type TestCiphers, testCiphers } from './testing/test-keys.ts';
import { WalArchive, nextWalObject } from './wal-archive.ts';
import { WalStore } from './wal-store.ts';

const root = mkdtempSync(join(tmpdir(), 'wal-re-encryption-'));
after(() => rmSync(root, { recursive: true, force: true }));
const project = 'a'.repeat(32) as ProjectUid;
const timeline = 'b'.repeat(32) as TimelineId;
let dirs = 0;
const START = lsn(3 * WAL_SEGMENT_BYTES - 60_000);
const LENGTH = WAL_SEGMENT_BYTES + 400_000;
const wal = syntheticWal(START, LENGTH, 7);
const END = lsn(START + LENGTH - 100_000);

const open = (dir: string, ciphers: TestCiphers): WalStore =>
  WalStore.open({ dir, project, timeline, startLsn: START, prevRecordLsn: lsn(START - 120), ringBytes: 0, ciphers, flushHint: START });

function append(store: WalStore, to: number): void {
  for (let at: number = store.appendLsn; at < to; at += 200_000) {
    store.append(lsn(at), wal.bytes.subarray(at - START, Math.min(to, at + 200_000) - START));
    store.sync();
  }
}
function check(store: WalStore, to: Lsn = store.flushLsn): void {
  assert.equal(store.damage, undefined);
  for (let at: number = store.firstLsn; at < to; ) {
    const bytes = store.read(lsn(at), 1 << 20);
    assert.ok(bytes.equals(wal.bytes.subarray(at - START, at - START + bytes.length)), `WAL at ${at - START}`);
    at += bytes.length;
  }
}
/** KEK versions in the headers of the segment files. */
const births = (dir: string): number[] =>
  readdirSync(dir)
    .filter((name) => SEGMENT_NAME.test(name))
    .map(
      (name) =>
        decodeDekReference(decodeSegmentHeader(readFileSync(join(dir, name)).subarray(0, SEGMENT_HEADER_BYTES)).keyReference).kekVersion,
    );
const olderThan =
  (version: number) =>
  (reference: Buffer): boolean =>
    decodeDekReference(reference).kekVersion < version;

async function scene(): Promise<{ dir: string; ciphers: TestCiphers; store: WalStore }> {
  const dir = join(root, `t${dirs++}`);
  const ciphers = testCiphers(project);
  const store = open(dir, ciphers);
  append(store, END);
  await store.prepareNext(); // perhaps one that the appends began
  await store.prepareNext();
  ciphers.keks.push(randomSecret());
  return { dir, ciphers, store };
}

test('every segment gets a fresh key, the one being written too; then the old KEK can go', async () => {
  const { dir, ciphers, store } = await scene();
  const { flushLsn, flushRecordLsn, lastRecordLsn } = store;
  const old = store.sealedUnder(olderThan(2));
  assert.equal(old.length, 4, 'two complete, the current and the prepared one');
  let bytes = 0;
  for (const number of old) bytes += await store.reEncrypt(number);
  assert.ok(bytes > LENGTH - 200_000);
  assert.deepEqual(store.sealedUnder(olderThan(2)), []);
  assert.deepEqual([...new Set(births(dir))], [2]);
  assert.deepEqual([store.flushLsn, store.flushRecordLsn, store.lastRecordLsn], [flushLsn, flushRecordLsn, lastRecordLsn]);
  ciphers.keks[0]?.fill(0);
  check(store);
  append(store, START + LENGTH - 8);
  await store.close();
  const again = open(dir, ciphers);
  assert.equal(again.flushLsn, START + LENGTH - 8);
  check(again);
  assert.ok(!readdirSync(dir).some((name) => name.endsWith('.tmp')));
  await again.close();
});

test('appends, reads, trims and truncations in the middle of it', async () => {
  const { dir, ciphers, store } = await scene();
  const [first = 0, second = 0] = store.sealedUnder(olderThan(2));
  const copying = store.reEncrypt(second);
  append(store, START + LENGTH - 50_000);
  check(store);
  await copying;
  check(store);
  const trimmed = store.reEncrypt(first);
  store.trim(lsn((first + 1) * WAL_SEGMENT_BYTES));
  assert.equal(await trimmed, 0);
  const cut = store.reEncrypt(second);
  await turn();
  store.truncate(lsn((second + 1) * WAL_SEGMENT_BYTES - 4_096));
  assert.equal(await cut, 0, 'what was cut off does not come back');
  check(store);
  await store.close();
  const again = open(dir, ciphers);
  check(again);
  await again.close();
});

test('the segment being written gets a fresh key between two appends', async () => {
  const { dir, ciphers, store } = await scene();
  const current = Math.floor(store.flushLsn / WAL_SEGMENT_BYTES);
  const copying = store.reEncrypt(current);
  for (let at: number = store.appendLsn; at < START + LENGTH - 16; at += 8) {
    store.append(lsn(at), wal.bytes.subarray(at - START, at - START + 8));
    if (at % 1024 === 0) await turn();
    if (at % 512 === 0) store.sync();
  }
  store.sync();
  await copying;
  append(store, START + LENGTH - 8);
  check(store);
  assert.equal(births(dir).filter((version) => version === 2).length >= 1, true);
  assert.ok(!store.sealedUnder(olderThan(2)).includes(current));
  await store.close();
  const again = open(dir, ciphers);
  assert.equal(again.flushLsn, START + LENGTH - 8);
  check(again);
  await again.close();
});

test('a leftover of a kill is swept, and a copy that is under way does not outlive a close', async () => {
  const { dir, ciphers, store } = await scene();
  const [, second = 0] = store.sealedUnder(olderThan(2));
  const copying = store.reEncrypt(second);
  await store.close();
  await copying.catch(() => {});
  assert.ok(!readdirSync(dir).some((name) => name.endsWith('.tmp')));
  writeFileSync(join(dir, '000000010000000000000003.anew.tmp'), 'half');
  const again = open(dir, ciphers);
  check(again);
  assert.ok(!readdirSync(dir).some((name) => name.endsWith('.tmp')));
  await again.close();
});

test('objects of the archive are written anew in their place; another member that is at the same is no conflict', async () => {
  const { ciphers, store } = await scene();
  const objects = new MemoryStore();
  const make = (): WalArchive => {
    const scratchDir = mkdtempSync(join(root, 'scratch-'));
    return new WalArchive({ store: objects, project, timeline, startLsn: START, keys: ciphers, scratchDir, log: silentLogger });
  };
  const archive = make();
  ciphers.keks.pop();
  const source = (from: Lsn, max: number): Buffer => store.read(from, max);
  let through: Lsn = START;
  for (let next = nextWalObject(through, END); next !== undefined; next = nextWalObject(through, END)) {
    await archive.put(through, next, source);
    through = next.end;
  }
  await archive.putTail(through, END, source);
  ciphers.keks.push(randomSecret());
  const reader = archive.reader();
  await reader.read(START, 100);
  const told: [number, number][] = [];
  const wrote = async (bytes: number, left: number): Promise<void> => void told.push([bytes, left]);
  await Promise.all([archive.reEncrypt(through, olderThan(2), wrote), make().reEncrypt(through, olderThan(2), async () => {})]);
  assert.deepEqual(told.at(-1)?.[1], 0);
  for await (const { header } of archive.trailers(through)) assert.equal(decodeDekReference(header.keyReference).kekVersion, 2);
  ciphers.keks[0]?.fill(0);
  for (let at: number = START; at < END; ) {
    const bytes = await reader.read(lsn(at), 1 << 20);
    assert.ok(bytes.equals(wal.bytes.subarray(at - START, at - START + bytes.length)));
    at += bytes.length;
  }
  reader.close();
  await archive.reEncrypt(through, olderThan(2), async () => assert.fail('nothing is left'));
  await store.close();
});
