/** Frames sealed together: every frame comes back whatever was read before it, by whoever; what a pack left in memory is wiped; damage to one pack is damage
 *  to its frames only; files of the version before, with a frame in each pack, are read. */
import assert from 'node:assert/strict';
import { createCipheriv } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { after, test } from 'node:test';
import { isCode } from '@lakebase/base';
import { TAG_BYTES, bindFrame, frameNonce, plainProvider } from '@lakebase/envelope';
import type { Lsn } from '@lakebase/ids';
import { LocalKeys } from '@lakebase/keys';
import fc from 'fast-check';
import {
  ARG_STOP,
  ENTRY_IMAGE,
  ENTRY_RECORD,
  FrameCache,
  KIND_REL_PAGE,
  LayerReader,
  LayerWriter,
  encodeKey,
  metaSeries,
} from './index.ts';
import { type LayerFooter, FRAME_INDEX_ENTRY_BYTES, encodeFooter, encodeHeader, layerBinding } from './layer-format.ts';
import { FrameIndex } from './frame-index.ts';
import { LayerCursor } from './layer-cursor.ts';
import { OpenPacks } from './open-packs.ts';
import type { ObjectKeys } from './object-keys.ts';

const root = mkdtempSync(join(tmpdir(), 'packs-'));
after(() => rmSync(root, { recursive: true, force: true }));
const project = 'a'.repeat(32);
const timeline = 'b'.repeat(32);
const keys = new LocalKeys().project(project);
const plainKeys: ObjectKeys = { ...plainProvider, load: async () => {}, reserve: async () => {} };
const identity = { project, timeline, kind: 'delta' as const, level: 1, generation: 0, startLsn: 0 as Lsn, endLsn: 1_000_000 as Lsn };
const series = metaSeries(KIND_REL_PAGE, 1663, 5, 1);
let files = 0;

/** Bytes that do not compress, the same ones for the same seed. */
const noise = (seed: number, bytes: number): Buffer => {
  const key = Buffer.alloc(16, seed);
  return createCipheriv('aes-128-ctr', key, key).update(Buffer.alloc(bytes));
};

interface Value {
  readonly bytes: number;
  readonly compressible: boolean;
}
const contentOf = (v: Value, i: number): Buffer =>
  v.compressible ? Buffer.alloc(v.bytes, `row ${i} of a table `) : noise(i & 255, v.bytes);

async function write(values: readonly Value[], of: ObjectKeys): Promise<string> {
  const path = join(root, `delta-${files++}`);
  const writer = await LayerWriter.create(path, { ...identity, compress: true }, of);
  for (const [i, v] of values.entries()) writer.add(encodeKey(series, i), (i + 1) as Lsn, ENTRY_RECORD, ARG_STOP, contentOf(v, i));
  const d = await writer.finish();
  assert.equal(d.bytes, readFileSync(path).length);
  return path;
}

function check(reader: LayerReader, values: readonly Value[], order: readonly number[]): void {
  for (const n of order) {
    const i = n % values.length;
    const out: { bytes: Buffer }[] = [];
    assert.ok(reader.collect(encodeKey(series, i), 1_000_000 as Lsn, 0 as Lsn, out as never));
    assert.ok(out[0]?.bytes.equals(contentOf(values[i] as Value, i)), `value ${i}`);
  }
}

const value = fc.record({ bytes: fc.integer({ min: 1, max: 45_000 }), compressible: fc.boolean() });

for (const [name, of] of [
  ['encrypted', keys],
  ['encryption switched off', plainKeys],
] as const)
  test(`values of any size come back in any order, from the layer and from a copy of it (${name})`, async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(value, { minLength: 1, maxLength: 60 }),
        fc.array(fc.nat(1_000), { maxLength: 80 }),
        fc.boolean(),
        async (values, order, pass) => {
          const path = await write(values, of);
          // So small that frames are opened again and again.
          const cache = new FrameCache(1);
          const reader = new LayerReader(path, of, cache);
          if (pass) cache.startPassing();
          for (const n of order) {
            if (pass) cache.startPassing();
            check(reader, values, [n]);
          }
          cache.endPassing();
          const copyPath = join(root, `delta-${files++}`);
          const writer = await LayerWriter.create(copyPath, identity, of);
          await writer.copyFrom(reader);
          await writer.finish();
          const copy = new LayerReader(copyPath, of, cache);
          check(copy, values, order);
          let seen = 0;
          for (const cursor = new LayerCursor(copy); cursor.key !== undefined; cursor.next(), seen++)
            cursor.entries((e) => assert.ok(e.bytes.equals(contentOf(values[seen] as Value, seen))) === undefined);
          assert.equal(seen, values.length);
          for (const r of [reader, copy]) r.close();
          for (const p of [path, copyPath]) rmSync(p);
        },
      ),
      { numRuns: 40 },
    );
  });

test('several frames share a tag, and a flipped bit is damage to those only', async () => {
  // Frames of about 5 KiB as stored: four to a pack.
  const values = Array.from({ length: 240 }, (_, i) => ({ bytes: i % 2 === 0 ? 7_000 : 1_192, compressible: i % 2 === 0 }));
  const path = await write(values, keys);
  const bad = readFileSync(path);
  bad[600] = (bad[600] as number) ^ 1; // behind the header: the first pack
  writeFileSync(path, bad);
  const reader = new LayerReader(path, keys, new FrameCache(1 << 20));
  const frameOf = (i: number): number => reader.frameAtOrBefore(encodeKey(series, i + 1)); // its own key begins at a later LSN
  const broken = new Set<number>();
  for (const i of values.keys()) {
    try {
      check(reader, values, [i]);
    } catch (error) {
      assert.ok(isCode(error, 'CORRUPT') && error.message.includes(path) && error.message.includes('frame'));
      broken.add(frameOf(i));
    }
  }
  assert.ok(broken.size === 4 && reader.frames > 20, `${broken.size} of ${reader.frames} frames`);
  assert.deepEqual(
    [...broken],
    Array.from(broken, (_, n) => n),
  );
  reader.close();
});

test('what is held is zeros when it is dropped, pushed out or forgotten', () => {
  const small = () => Buffer.from(new Uint8Array(100).fill(7).buffer);
  const held = new OpenPacks(2);
  const [a, b, c] = [small(), small(), small()];
  held.set(1, a);
  held.set(2, b);
  assert.equal(held.get(1), a);
  held.set(3, c); // 2 was used least lately
  assert.equal(held.get(2), undefined);
  assert.ok(b.every((x) => x === 0) && a.every((x) => x === 7));
  held.forget(1, 2);
  assert.equal(held.get(1), undefined);
  assert.ok(a.every((x) => x === 0) && c.every((x) => x === 7));
  held.forget();
  assert.ok(c.every((x) => x === 0));
});

test('a project that is locked leaves no pack in memory', async () => {
  const values = Array.from({ length: 16 }, () => ({ bytes: 8_192, compressible: true }));
  const cache = new FrameCache(1 << 20);
  const reader = new LayerReader(await write(values, keys), keys, cache);
  const firstPack = (FrameCache.newLayerNumber() - 1) * 0x100_0000;
  check(reader, values, [0]);
  const held = cache.packs.get(firstPack);
  assert.ok(held !== undefined && held.some((x) => x !== 0));
  reader.close(true);
  assert.equal(cache.packs.get(firstPack), undefined);
  assert.ok(held.every((x) => x === 0));
});

/** As version 2 wrote it: every frame sealed alone, the header says 2. */
async function writeVersion2(frames: readonly Buffer[]): Promise<string> {
  const path = join(root, `delta-${files++}`);
  await keys.reserve(1);
  const key = keys.create();
  const header = { ...identity, version: 2, objectId: Buffer.alloc(16, 9), algorithm: key.algorithm, keyReference: key.keyReference };
  const cipher = key.frames(header.objectId);
  const binding = layerBinding(header, basename(path));
  const pieces = [encodeHeader(header)];
  let at = (pieces[0] as Buffer).length;
  const rows = Buffer.alloc(frames.length * FRAME_INDEX_ENTRY_BYTES);
  for (const [n, frame] of frames.entries()) {
    const sealed = cipher.seal(frame, frameNonce(n), bindFrame(binding, n));
    const row = n * FRAME_INDEX_ENTRY_BYTES;
    encodeKey(series, n).copy(rows, row);
    rows.writeBigUInt64BE(BigInt(n + 1), row + 20);
    rows.writeBigUInt64BE(BigInt(at), row + 28);
    rows.writeUInt32BE(frame.length, row + 36);
    pieces.push(sealed.bytes, sealed.tag);
    at += frame.length + TAG_BYTES;
  }
  const footer = encodeFooter({
    indexOffset: at,
    indexBytes: rows.length + TAG_BYTES,
    frames: frames.length,
    entries: frames.length,
    keyMin: encodeKey(series, 0),
    keyMax: encodeKey(series, frames.length - 1),
  });
  const sealed = cipher.seal(rows, frameNonce(frames.length), Buffer.concat([bindFrame(binding, frames.length), footer]));
  writeFileSync(path, Buffer.concat([...pieces, sealed.bytes, sealed.tag, footer]));
  return path;
}

test('layers of version 2 are read and copied', async () => {
  const pages = Array.from({ length: 9 }, (_, i) => Buffer.alloc(8_192, i + 1));
  const frames = pages.map((page, i) => {
    const frame = Buffer.alloc(28 + 14 + page.length);
    encodeKey(series, i).copy(frame);
    frame.writeUInt32BE(1, 20);
    frame.writeUInt32BE(frame.length, 24);
    frame[28] = ENTRY_IMAGE;
    frame[29] = ARG_STOP;
    frame.writeBigUInt64BE(BigInt(i + 1), 30);
    frame.writeUInt32BE(page.length, 38);
    page.copy(frame, 42);
    return frame;
  });
  const old = new LayerReader(await writeVersion2(frames), keys, new FrameCache(1 << 20));
  const path = join(root, `delta-${files++}`);
  const writer = await LayerWriter.create(path, identity, keys);
  await writer.copyFrom(old);
  await writer.finish();
  const copy = new LayerReader(path, keys, new FrameCache(1 << 20));
  assert.deepEqual([old.header.version, copy.header.version], [2, 3]);
  for (const reader of [old, copy])
    for (const [i, page] of pages.entries()) {
      const out: { bytes: Buffer }[] = [];
      reader.collect(encodeKey(series, i), 100 as Lsn, 0 as Lsn, out as never);
      assert.ok(out[0]?.bytes.equals(page));
    }
  for (const reader of [old, copy]) reader.close();
});

test('a frame index is refused or every place it tells lies between header and index, packs hold all frames in order', () => {
  const row = fc.record({ gap: fc.constantFrom(0, 0, 16, 16, 1, 15), stored: fc.integer({ min: 0, max: 50 }) });
  fc.assert(
    fc.property(fc.array(row, { maxLength: 12 }), fc.constantFrom(0, 16, 16, 16, 7), (rows, tail) => {
      const bytes = Buffer.alloc(rows.length * FRAME_INDEX_ENTRY_BYTES);
      let at = 100;
      for (const [n, r] of rows.entries()) {
        at += n === 0 ? 0 : r.gap;
        bytes.writeBigUInt64BE(BigInt(at), n * FRAME_INDEX_ENTRY_BYTES + 28);
        bytes.writeUInt32BE(r.stored, n * FRAME_INDEX_ENTRY_BYTES + 36);
        at += r.stored;
      }
      const footer = { indexOffset: at + tail, frames: rows.length } as LayerFooter;
      const good = rows.every((r, n) => r.stored > 0 && (n === 0 || r.gap === 0 || r.gap === 16)) && tail === (rows.length > 0 ? 16 : 0);
      if (!good) {
        assert.throws(
          () => new FrameIndex(bytes, 100, footer, 'the-file'),
          (e: unknown) => isCode(e, 'CORRUPT') && e.message.includes('the-file'),
        );
        return;
      }
      const index = new FrameIndex(bytes, 100, footer, 'the-file');
      let next = 0;
      let place = 100;
      for (let p = 0; p < index.packs; p++) {
        const pack = index.pack(p);
        assert.deepEqual([pack.number, pack.first, pack.offset], [p, next, place]);
        for (let n = pack.first; n < pack.end; n++) assert.deepEqual(index.packOf(n), pack);
        next = pack.end;
        place += pack.bytes + TAG_BYTES;
      }
      assert.deepEqual([next, place], [rows.length, footer.indexOffset]);
    }),
    { numRuns: 2_000 },
  );
});
