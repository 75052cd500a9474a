/** The in-memory layer: records found in a buffer copied as a whole, and the layer as another thread sees it. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { LocalKeys } from '@lakebase/keys';
import type { Lsn } from '@lakebase/ids';
import {
  ARG_STOP,
  ENTRY_RECORD,
  ENTRY_VALUE,
  type Entry,
  FrameCache,
  KIND_REL_PAGE,
  LayerHandle,
  OpenLayer,
  SeriesTable,
  encodeKey,
  flushLayer,
  openLayerMemory,
} from './index.ts';

const relation = { kind: KIND_REL_PAGE, spc: 1663, db: 5, rel: 7, fork: 0 };

/** Bytes that tell where in which buffer they were. */
const source = (seed: number, length: number): Buffer => Buffer.from(Array.from({ length }, (_, i) => (seed * 31 + i * 7) & 255));

/** How far such pieces lie: to the end of the buffer, or of a page of it. */
const reachOf = (seed: number, length: number, at: number): number => (seed % 2 === 0 ? 8_192 - (at % 8_192) : length - at);

/** Files pieces of 40 bytes from several buffers, some of them too small or too large to be copied whole. */
function fill(layer: OpenLayer, series: number): Map<number, Buffer> {
  const expected = new Map<number, Buffer>();
  let lsn = 100;
  for (const [seed, length] of [
    [1, 130_000],
    [2, 700],
    [3, 400_000],
    [4, 260_000],
    [5, 262_000],
    [6, 131_072],
  ] as const) {
    const bytes = source(seed, length);
    for (let at = 8; at + 40 <= length; at += 4_000) {
      layer.file(series, lsn % 17, ENTRY_RECORD, 0, lsn as Lsn, layer.appendFrom(bytes, at, 40, reachOf(seed, length, at)), 40);
      expected.set(lsn, Buffer.from(bytes.subarray(at, at + 40)));
      lsn += 8;
    }
    // The same buffer, filled anew: what was filed stays.
    bytes.fill(0xee);
    layer.forgetSource();
    if (length > 48) {
      layer.file(series, lsn % 17, ENTRY_RECORD, 0, lsn as Lsn, layer.appendFrom(bytes, 8, 40, length), 40);
      expected.set(lsn, Buffer.alloc(40, 0xee));
      lsn += 8;
    }
  }
  return expected;
}

function found(view: { collect(key: Buffer, upTo: Lsn, floor: Lsn, out: Entry[]): boolean }): Map<number, Buffer> {
  const all = new Map<number, Buffer>();
  for (let block = 0; block < 17; block++) {
    const entries: Entry[] = [];
    view.collect(encodeKey(relation, block), 1e9 as Lsn, 0 as Lsn, entries);
    for (const e of entries) all.set(e.lsn, Buffer.from(e.bytes));
  }
  return all;
}
const sorted = (m: Map<number, Buffer>): [number, string][] => [...m].sort((a, b) => a[0] - b[0]).map(([k, v]) => [k, v.toString('hex')]);

test('records are found where they were in buffers copied as a whole, in memory and flushed from another thread', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'open-layer-'));
  try {
    const series = new SeriesTable();
    const layer = new OpenLayer(series, 0 as Lsn);
    const expected = sorted(fill(layer, series.internSeries(relation)));
    assert.ok(expected.length > 250);
    assert.deepEqual(sorted(found(layer)), expected);
    layer.freeze(1e6 as Lsn);
    const keys = new LocalKeys().project('a'.repeat(32));
    const files = { directory, keys, cache: new FrameCache(1 << 20), project: 'a'.repeat(32), timeline: 'b'.repeat(32) };
    // As a worker gets it: shared chunks, cloned tables.
    const descriptor = await flushLayer(OpenLayer.fromMessage(structuredClone(layer.toMessage())), { ...files, generation: 0, number: 1 });
    const handle = new LayerHandle(descriptor, files);
    assert.deepEqual(sorted(found(handle.reader())), expected);
    assert.deepEqual(sorted(found(layer)), expected, 'the layer itself stays readable');
    handle.close();
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
});

test('memory that was given back goes to the next layer; the layer cannot be read any more', () => {
  const series = new SeriesTable();
  const id = series.internSeries(relation);
  const before = openLayerMemory();
  const first = new OpenLayer(series, 0 as Lsn);
  for (let i = 1; i <= 400; i++) first.put(id, i % 17, ENTRY_RECORD, 0, (i * 8) as Lsn, source(i, 9_000));
  first.freeze(4_000 as Lsn);
  assert.ok(openLayerMemory().used - before.used >= 3 << 20);
  assert.equal(found(first).size, 400);
  first.recycle();
  first.recycle();
  assert.equal(openLayerMemory().used, before.used);
  assert.ok(openLayerMemory().free >= 3 << 20);
  assert.throws(() => found(first), /given back/);
  const second = new OpenLayer(series, 4_000 as Lsn, first);
  for (let i = 1; i <= 400; i++) second.put(id, i % 17, ENTRY_RECORD, 0, (4_000 + i * 8) as Lsn, source(i + 1, 9_000));
  assert.equal(openLayerMemory().free, before.free, 'it took what the first had');
  const entries = found(second);
  for (let i = 1; i <= 400; i++) assert.deepEqual(entries.get(4_000 + i * 8), source(i + 1, 9_000));
  second.freeze(8_000 as Lsn);
  second.recycle();
});

test('entries linked many at a time: a page read at any moment has all of its own, and those with many pending are told once per step', () => {
  const series = new SeriesTable();
  const id = series.internSeries(relation);
  const layer = new OpenLayer(series, 0 as Lsn);
  const reached: [number, number][] = [];
  layer.watchPending(100, (_series, block, pending) => reached.push([block, pending]));
  const expected = new Map<number, number[]>();
  for (let lsn = 1; lsn <= 5_000; lsn++) {
    // Many pages with few entries, so that keys are added and tables grow in the middle of a link; one page with many; one that starts anew.
    const block = lsn % 3 === 0 ? 7 : lsn % 3 === 1 ? 9 : 10 + ((lsn * 7_919) % 1_500);
    const stop = block === 9 && lsn % 50 === 1;
    layer.put(id, block, stop ? ENTRY_VALUE : ENTRY_RECORD, stop ? ARG_STOP : 0, lsn as Lsn, Buffer.from([lsn & 255]));
    const lsns = expected.get(block) ?? [];
    if (stop) lsns.length = 0;
    lsns.push(lsn);
    expected.set(block, lsns);
    if (lsn % 37 !== 0 && lsn % 256 !== 0) continue;
    const entries: Entry[] = [];
    layer.collect(encodeKey(relation, block), 1e9 as Lsn, 0 as Lsn, entries);
    assert.deepEqual(entries.map((e) => e.lsn).reverse(), lsns);
  }
  for (const [block, lsns] of expected) {
    const entries: Entry[] = [];
    layer.collect(encodeKey(relation, block), 1e9 as Lsn, 0 as Lsn, entries);
    assert.deepEqual(entries.map((e) => e.lsn).reverse(), lsns);
  }
  assert.equal(layer.keyCount, expected.size);
  assert.equal(layer.sortedKeys().length, expected.size);
  assert.deepEqual(
    reached.filter(([block]) => block === 7).map(([, pending]) => pending),
    Array.from({ length: 16 }, (_, i) => (i + 1) * 100),
  );
  assert.ok(
    reached.every(([block, pending]) => block === 7 && pending % 100 === 0),
    'a page that starts anew has few pending',
  );
});
