/** WAL objects: what was put comes back, from any place, in any pieces; what was changed is found; double and interrupted puts do no harm. */
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { LakebaseError, silentLogger } from '@lakebase/base';
import { decodeDekReference } from '@lakebase/envelope';
import { type Lsn, type ProjectUid, type TimelineId, WAL_SEGMENT_BYTES, lsn } from '@lakebase/ids';
import { walObject, walTailObject } from '@lakebase/object-store';
import { MemoryStore } from '@lakebase/object-store/testing';
import fc from 'fast-check';
import { type PutResult, WalArchive, nextWalObject } from './wal-archive.ts';
import { WAL_FRAME_BYTES } from './wal-object-format.ts';
import { syntheticWal } from './testing/synthetic-wal.ts';
import { testCiphers } from './testing/test-keys.ts';

const root = mkdtempSync(join(tmpdir(), 'wal-archive-'));
after(() => rmSync(root, { recursive: true, force: true }));
const project = 'a'.repeat(32) as ProjectUid;
const timeline = 'b'.repeat(32) as TimelineId;
const SEG = WAL_SEGMENT_BYTES;
/** Near the end of a segment: the first object is small. */
const START = lsn(4 * SEG - 3 * WAL_FRAME_BYTES - 1_000);
const wal = syntheticWal(START, SEG + 6 * WAL_FRAME_BYTES, 5);
const slice = (from: number, to: number): Buffer => Buffer.from(wal.bytes.subarray(from - START, to - START));
const source = (from: Lsn, max: number): Buffer => slice(from, Math.min(from + max, wal.end));

function setUp(store = new MemoryStore(), ciphers = testCiphers(project)) {
  const scratchDir = mkdtempSync(join(root, 'member-'));
  const archive = new WalArchive({ store, project, timeline, startLsn: START, keys: ciphers, scratchDir, log: silentLogger });
  return { store, ciphers, archive };
}

/** Puts everything up to `to` as a safekeeper does. */
async function offload(archive: WalArchive, to: Lsn): Promise<PutResult[]> {
  const results: PutResult[] = [];
  for (let from: Lsn = START; ; ) {
    const next = nextWalObject(from, to);
    if (next === undefined) return results;
    results.push(await archive.put(from, next, source));
    from = next.end;
  }
}

async function readBack(archive: WalArchive, from: Lsn, to: Lsn, max: number): Promise<Buffer> {
  const reader = archive.reader();
  const parts: Buffer[] = [];
  for (let at: number = from; at < to; ) {
    const part = await reader.read(lsn(at), Math.min(max, to - at));
    parts.push(part);
    at += part.length;
  }
  return Buffer.concat(parts);
}

describe('WAL objects', () => {
  test('objects are as large as their place allows, and cover everything', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 40 * SEG }), fc.integer({ min: 0, max: 60 }), (start, segments) => {
        const to = lsn((Math.floor(start / SEG) + segments) * SEG);
        const sizes: number[] = [];
        let at: number = start;
        for (let next = nextWalObject(lsn(at), to); next !== undefined; next = nextWalObject(lsn(at), to)) {
          assert.ok(next.aligned % (next.segments * SEG) === 0 && next.aligned <= at && next.end === next.aligned + next.segments * SEG);
          sizes.push(next.segments);
          at = next.end;
        }
        assert.equal(at, segments === 0 ? start : to);
        // Small ones only at the two ends: whatever the length, at most 3 before and 3 behind those of eight segments, and the first one.
        assert.ok(sizes.filter((n) => n < 8).length <= 7);
      }),
    );
  });

  test('what was put and the tail come back whole, from everywhere, and the scratch file goes', async () => {
    const { archive, store } = setUp();
    const [first, second] = await offload(archive, lsn(5 * SEG));
    assert.deepEqual([first?.put, first?.start, second?.end], [true, START, 5 * SEG]);
    await archive.putTail(lsn(5 * SEG), wal.end, source);
    assert.deepEqual(readdirSync(archive.options.scratchDir), []);
    assert.deepEqual([...store.objects.keys()].sort(), [
      walObject(project, timeline, lsn(3 * SEG), 1),
      walObject(project, timeline, lsn(4 * SEG), 1),
      walTailObject(project, timeline),
    ]);
    assert.ok((await readBack(archive, START, wal.end, 128 * 1024)).equals(slice(START, wal.end)));
    for (const from of [START + 1, 4 * SEG - 5, 4 * SEG, 5 * SEG - 1, wal.end - 9])
      assert.ok((await readBack(archive, lsn(from), wal.end, 50_000)).equals(slice(from, wal.end)));
    await assert.rejects(archive.reader().read(wal.end, 10), { code: 'NOT_FOUND' });
  });

  test('put twice, put by two members, put and not told: one object, checked', async () => {
    const { archive, store, ciphers } = setUp();
    await offload(archive, lsn(4 * SEG));
    const [again] = await offload(setUp(store, ciphers).archive, lsn(4 * SEG));
    assert.equal(again?.put, false);
    const both = setUp(new MemoryStore(), ciphers);
    const results = await Promise.all([offload(both.archive, lsn(4 * SEG)), offload(setUp(both.store, ciphers).archive, lsn(4 * SEG))]);
    assert.equal(results.flat().filter((r) => r.put).length, 1);
    assert.ok((await readBack(both.archive, START, lsn(4 * SEG), 99_999)).equals(slice(START, 4 * SEG)));
  });

  test('a changed byte anywhere is found, and the next put mends it', async () => {
    const { archive, store } = setUp();
    await offload(archive, lsn(4 * SEG));
    const name = walObject(project, timeline, lsn(3 * SEG), 1);
    const whole = Buffer.from(store.objects.get(name)?.bytes ?? []);
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 0, max: whole.length - 1 }), fc.integer({ min: 1, max: 255 }), async (at, mask) => {
        const bytes = Buffer.from(whole);
        bytes[at] = (bytes[at] as number) ^ mask;
        store.objects.set(name, { bytes, tag: `x${at}` });
        await assert.rejects(readBack(archive, START, lsn(4 * SEG), 1 << 20), (e: unknown) => {
          assert.ok(e instanceof LakebaseError && (e.code === 'CORRUPT' || e.code === 'UNSUPPORTED'), String(e));
          return true;
        });
      }),
      { numRuns: 40 },
    );
    for (const cut of [0, 1, 30, whole.length - 1]) {
      store.objects.set(name, { bytes: whole.subarray(0, cut), tag: `c${cut}` });
      await assert.rejects(readBack(archive, START, lsn(4 * SEG), 1 << 20), { code: 'CORRUPT' });
    }
    const [mended] = await offload(archive, lsn(4 * SEG));
    assert.equal(mended?.put, true);
    assert.ok((await readBack(archive, START, lsn(4 * SEG), 1 << 20)).equals(slice(START, 4 * SEG)));
  });

  test('an object under another name, of another timeline or project does not open', async () => {
    const { archive, store, ciphers } = setUp();
    await offload(archive, lsn(5 * SEG));
    const [a, b] = [walObject(project, timeline, lsn(3 * SEG), 1), walObject(project, timeline, lsn(4 * SEG), 1)];
    const bytes = store.objects.get(b)?.bytes as Buffer;
    store.objects.set(a, { bytes, tag: 'moved' });
    await assert.rejects(archive.reader().read(START, 10), { code: 'CORRUPT' });
    const other = 'c'.repeat(32) as TimelineId;
    store.objects.set(walObject(project, other, lsn(4 * SEG), 1), { bytes, tag: 'other' });
    const elsewhere = new WalArchive({ ...archive.options, timeline: other, keys: ciphers });
    await assert.rejects(elsewhere.reader().read(lsn(4 * SEG), 10), { code: 'CORRUPT' });
  });

  test('the tail is replaced by more, not by less', async () => {
    const { archive, store, ciphers } = setUp();
    await archive.putTail(START, lsn(START + 500_000), source);
    await archive.putTail(START, lsn(START + 700_000), source);
    const late = setUp(store, ciphers).archive;
    assert.equal((await late.putTail(START, lsn(START + 600_000), source)).put, false);
    assert.ok((await readBack(late, START, lsn(START + 700_000), 1 << 20)).equals(slice(START, START + 700_000)));
  });

  test('a damaged tail is replaced whatever it says it holds, unless somebody was faster', async () => {
    const { archive, store, ciphers } = setUp();
    const end = lsn(START + 500_000);
    await archive.putTail(START, end, source);
    const there = store.objects.get(walTailObject(project, timeline));
    assert.ok(there !== undefined);
    const bytes = Buffer.from(there.bytes);
    bytes[1_000] = (bytes[1_000] as number) ^ 1;
    store.objects.set(walTailObject(project, timeline), { bytes, tag: 'damaged' });
    const other = setUp(store, ciphers).archive;
    assert.equal((await other.putTail(START, end, source)).put, false);
    await assert.rejects(other.replaceTail(START, end, source, 'another'), { code: 'CONFLICT' });
    await assert.rejects(other.replaceTail(START, end, source, undefined), { code: 'ALREADY_EXISTS' });
    assert.equal((await other.replaceTail(START, end, source, 'damaged')).put, true);
    assert.ok((await readBack(other, START, end, 1 << 20)).equals(slice(START, end)));
  });

  test('of members that put the tail at the same time the one with more wins, whoever is last', async () => {
    for (const first of ['less', 'more'] as const) {
      const less = setUp();
      const more = setUp(less.store, less.ciphers).archive;
      // Both have looked, and seen nothing, when the first one puts.
      let waiting = 0;
      let go = (): void => {};
      const bothLooked = new Promise<void>((resolve) => (go = resolve));
      const behind: Record<'less' | 'more', Promise<unknown>> = { less: bothLooked, more: bothLooked };
      const held = (who: 'less' | 'more') => async (from: Lsn, max: number) => {
        if (++waiting === 2) go();
        await behind[who];
        return source(from, max);
      };
      const puts = {
        less: (): Promise<unknown> => less.archive.putTail(START, lsn(START + 100_000), held('less')),
        more: (): Promise<unknown> => more.putTail(START, lsn(START + 120_000), held('more')),
      };
      const second = first === 'less' ? 'more' : 'less';
      const done = puts[first]();
      behind[second] = Promise.all([bothLooked, done]);
      await Promise.all([done, puts[second]()]);
      assert.ok((await readBack(more, START, lsn(START + 120_000), 1 << 20)).equals(slice(START, START + 120_000)), first);
    }
  });

  test('after a new KEK the old one is not needed any more, whoever re-wraps first', async () => {
    const { archive, store, ciphers } = setUp();
    await offload(archive, lsn(5 * SEG));
    await archive.putTail(lsn(5 * SEG), wal.end, source);
    ciphers.keks.push(Buffer.from((ciphers.keks[0] as Buffer).map((x) => x ^ 0x55)));
    const isOld = (r: Buffer): boolean => decodeDekReference(r).kekVersion < 2;
    const both = [archive, setUp(store, ciphers).archive];
    const counts = await Promise.all(both.map((x) => x.rewrap(lsn(5 * SEG), 2, isOld, (r) => ciphers.rewrap(r))));
    assert.equal(Math.max(...counts), 3);
    assert.equal(await archive.rewrap(lsn(5 * SEG), 2, isOld, (r) => ciphers.rewrap(r)), 0);
    const { name } = archive.references;
    const references = store.objects.get(name);
    assert.ok(references !== undefined);
    await archive.references.check();
    const bytes = Buffer.from(references.bytes);
    bytes[20] = (bytes[20] as number) ^ 1;
    store.objects.set(name, { bytes, tag: 'damaged' });
    await assert.rejects(archive.references.check(), { code: 'CORRUPT' });
    store.objects.set(name, references);
    (ciphers.keks[0] as Buffer).fill(0);
    for (const x of [...both, setUp(store, ciphers).archive])
      assert.ok((await readBack(x, START, wal.end, 1 << 20)).equals(slice(START, wal.end)));
  });

  test('a removed timeline leaves nothing', async () => {
    const { archive, store } = setUp();
    await offload(archive, lsn(5 * SEG));
    await archive.putTail(lsn(5 * SEG), wal.end, source);
    await archive.remove(wal.end);
    assert.equal(store.objects.size, 0);
    assert.equal(store.calls.list, 0);
  });

  test('a new lineage has names of its own: before its start the older WAL is read, from there on its own, whatever the older names hold', async () => {
    const { archive, store, ciphers } = setUp();
    await offload(archive, lsn(5 * SEG));
    const begin = lsn(5 * SEG - 40);
    const lineages = [
      { number: 0, startLsn: START },
      { number: 7, startLsn: begin },
    ];
    const options = { store, project, timeline, startLsn: begin, keys: ciphers, log: silentLogger };
    const next = new WalArchive({ ...options, lineages, scratchDir: archive.options.scratchDir });
    const other = Buffer.alloc(2 * SEG, 0xee);
    const anew = (from: Lsn, max: number): Buffer =>
      Buffer.from(other.subarray(from - begin, from - begin + Math.min(max, 6 * SEG - from)));
    // The segment in which it begins is there already, under the older lineage's name, with other bytes at its end.
    const first = nextWalObject(begin, lsn(5 * SEG));
    assert.ok(first !== undefined);
    assert.equal((await next.put(begin, first, anew)).put, true);
    await next.putTail(lsn(5 * SEG), lsn(5 * SEG + 1000), anew);
    // An old member goes on with its own.
    await archive.putTail(lsn(5 * SEG), wal.end, source);
    assert.equal(next.firstLsn, START);
    const all = await readBack(next, START, lsn(5 * SEG + 1000), 100_000);
    assert.ok(all.subarray(0, begin - START).equals(slice(START, begin)));
    assert.ok(all.subarray(begin - START).equals(other.subarray(0, 1040)));
    await assert.rejects(next.reader().read(lsn(5 * SEG + 1000), 10), { code: 'NOT_FOUND' });
    // A hole between the two is a hole, also where the older names hold something.
    const later = new WalArchive({
      ...options,
      startLsn: lsn(7 * SEG),
      lineages: [...lineages, { number: 9, startLsn: lsn(7 * SEG) }],
      scratchDir: archive.options.scratchDir,
    });
    await assert.rejects(later.reader().read(lsn(6 * SEG), 10), { code: 'NOT_FOUND' });
    assert.ok((await readBack(later, START, lsn(5 * SEG + 1000), 1 << 20)).equals(all));
    await later.remove(lsn(7 * SEG));
    assert.deepEqual([...store.objects.keys()], []);
  });
});
