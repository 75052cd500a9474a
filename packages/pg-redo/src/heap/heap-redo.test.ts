/** Heap redo on records made by hand: map clears, free space conditions, and what a hostile record may do: throw CORRUPT, nothing else. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isCode, LakebaseError } from '@lakebase/base';
import { BLCKSZ, FORK_VM, type Lsn, type RelTag } from '@lakebase/ids';
import {
  type DecodedRecord,
  decodeRecord,
  heapFreeSpace,
  isNewPage,
  itemFlags,
  itemId,
  itemOffset,
  LP_DEAD,
  LP_NORMAL,
  LP_REDIRECT,
  maxOffset,
  newDecodedRecord,
  PD_ALL_VISIBLE,
  pageLsn,
  pdFlags,
  RM_HEAP2_ID,
  RM_HEAP_ID,
} from '@lakebase/pg-format';
import fc from 'fast-check';
import type { EffectSink } from '../effects.ts';
import { freeSpaceAfter, heap2Effects, heapEffects } from './effects.ts';
import { applyHeapDelta } from './heap-delta.ts';
import { heapRedo } from './heap-redo.ts';
import { heap2Redo } from './heap2-redo.ts';
import { VM_VALID_BITS, vmGet, vmSet } from './vm.ts';

const END = 0x200_0000 as Lsn;

interface BlockSpec {
  block: number;
  data?: Buffer;
  fork?: number;
}

/** A record as bytes, through the decoder, so that offsets are real. */
function record(rmid: number, info: number, main: Buffer, blocks: readonly (BlockSpec | undefined)[], xid = 900): DecodedRecord {
  const headers: Buffer[] = [];
  const payload: Buffer[] = [];
  blocks.forEach((spec, id) => {
    if (spec === undefined) return;
    const data = spec.data ?? Buffer.alloc(0);
    const header = Buffer.alloc(20);
    header[0] = id;
    header[1] = (spec.fork ?? 0) | (data.length > 0 ? 0x20 : 0);
    header.writeUInt16LE(data.length, 2);
    header.writeUInt32LE(1663, 4);
    header.writeUInt32LE(5, 8);
    header.writeUInt32LE(16_400, 12);
    header.writeUInt32LE(spec.block, 16);
    headers.push(header);
    payload.push(data);
  });
  headers.push(main.length < 256 ? Buffer.from([255, main.length]) : Buffer.from([254, main.length & 255, main.length >> 8, 0, 0]));
  const head = Buffer.alloc(24);
  const bytes = Buffer.concat([head, ...headers, ...payload, main]);
  bytes.writeUInt32LE(bytes.length, 0);
  bytes.writeUInt32LE(xid, 4);
  bytes[16] = info;
  bytes[17] = rmid;
  return decodeRecord(bytes, 0, bytes.length, (END - 100) as Lsn, END, newDecodedRecord());
}

/** xl_heap_header and `text` as the row's data. */
const walTuple = (text: string): Buffer => Buffer.concat([Buffer.from([1, 0, 2, 8, 24, 0]), Buffer.from(text)]);

function insert(offnum: number, text: string, flags = 0, init = false, block = 7): DecodedRecord {
  return record(RM_HEAP_ID, init ? 0x80 : 0, Buffer.from([offnum & 255, offnum >> 8, flags]), [{ block, data: walTuple(text) }]);
}

function update(flags: number, blocks: (BlockSpec | undefined)[], info = 0x20, oldOffnum = 1, newOffnum = 2): DecodedRecord {
  const main = Buffer.alloc(14);
  main.writeUInt32LE(900, 0);
  main.writeUInt16LE(oldOffnum, 4);
  main[7] = flags;
  main.writeUInt16LE(newOffnum, 12);
  return record(RM_HEAP_ID, info, main, blocks);
}

interface Seen {
  blocks: number[];
  deltas: { tag: RelTag; block: number; delta: Buffer }[];
  hints: number[];
}

function effectsOf(r: DecodedRecord): Seen {
  const seen: Seen = { blocks: [], deltas: [], hints: [] };
  const sink = {
    block: (id: number) => seen.blocks.push(id),
    relDelta: (tag: RelTag, block: number, delta: Buffer) => seen.deltas.push({ tag, block, delta }),
    freeSpaceHint: (_main: RelTag, block: number) => seen.hints.push(block),
  } as unknown as EffectSink;
  if (r.rmid === RM_HEAP_ID) heapEffects(r, 18, sink);
  else heap2Effects(r, 18, sink);
  return seen;
}

function pageWith(...texts: string[]): Buffer {
  const page = Buffer.alloc(BLCKSZ);
  texts.forEach((text, i) => heapRedo(page, insert(i + 1, text, 0, i === 0), 0, 18));
  return page;
}

test('insert into a fresh page, then beside it', () => {
  const page = pageWith('hello', 'world');
  assert.equal(maxOffset(page), 2);
  assert.equal(pageLsn(page), END);
  const at = itemOffset(itemId(page, 2));
  assert.equal(page.readUInt32LE(at), 900); // xmin
  assert.equal(page.readUInt16LE(at + 14), 7); // own block in t_ctid
  assert.equal(page.toString('latin1', at + 24, at + 29), 'world');
});

test('update on one page takes prefix and suffix from the old version', () => {
  const page = pageWith('prefix-old-suffix');
  const data = Buffer.concat([Buffer.from([7, 0, 7, 0]), walTuple('NEW')]);
  heapRedo(page, update(0x20 | 0x40, [{ block: 7, data }], 0x40), 0, 18);
  const at = itemOffset(itemId(page, 2));
  assert.equal(page.toString('latin1', at + 24, at + 41), 'prefix-NEW-suffix');
  const old = itemOffset(itemId(page, 1));
  assert.equal(page.readUInt16LE(old + 16), 2); // forward link
  assert.notEqual(page.readUInt16LE(old + 18) & 0x4000, 0); // HOT-updated
});

test('borrowing from another page, or more than the old tuple has, is corrupt', () => {
  const data = Buffer.concat([Buffer.from([200, 0]), walTuple('x')]);
  assert.throws(
    () => heapRedo(pageWith('abc'), update(0x20, [{ block: 7, data }]), 0, 18),
    (e) => isCode(e, 'CORRUPT'),
  );
  assert.throws(
    () => heapRedo(pageWith('abc'), update(0x20, [{ block: 7, data }, { block: 8 }]), 0, 18),
    (e) => isCode(e, 'CORRUPT'),
  );
});

test('an insert that cleared all-visible clears the map by a delta, or by the map page it names', () => {
  const implied = effectsOf(insert(1, 'x', 1, false, 40_000));
  assert.deepEqual(implied.blocks, [0]);
  assert.equal(implied.deltas.length, 1);
  assert.deepEqual([implied.deltas[0]?.tag.fork, implied.deltas[0]?.block], [FORK_VM, 1]);
  const map = Buffer.alloc(BLCKSZ);
  vmSet(map, 40_000, VM_VALID_BITS);
  vmSet(map, 40_001, VM_VALID_BITS);
  applyHeapDelta(map, implied.deltas[0]?.delta as Buffer);
  assert.equal(vmGet(map, 40_000), 0);
  assert.equal(vmGet(map, 40_001), 3);

  const named = record(RM_HEAP_ID, 0, Buffer.from([1, 0, 1]), [
    { block: 40_000, data: walTuple('x') },
    { block: 1, fork: FORK_VM },
  ]);
  assert.deepEqual(effectsOf(named).deltas, []);
  assert.deepEqual(effectsOf(named).blocks, [0, 1]);
  vmSet(map, 40_000, VM_VALID_BITS);
  heapRedo(map, named, 1, 18);
  assert.equal(vmGet(map, 40_000), 0);
  assert.equal(pageLsn(map), END);
});

test('an update clears the bits of both its blocks: one delta a map page', () => {
  const data = walTuple('x');
  const both = effectsOf(update(3, [{ block: 9, data }, { block: 8 }]));
  assert.equal(both.deltas.length, 1);
  const map = Buffer.alloc(BLCKSZ);
  for (const b of [7, 8, 9, 10]) vmSet(map, b, VM_VALID_BITS);
  applyHeapDelta(map, both.deltas[0]?.delta as Buffer);
  assert.deepEqual(
    [7, 8, 9, 10].map((b) => vmGet(map, b)),
    [3, 0, 0, 3],
  );
  assert.deepEqual(
    effectsOf(update(3, [{ block: 40_000, data }, { block: 8 }])).deltas.map((d) => d.block),
    [0, 1],
  );
  assert.deepEqual(
    effectsOf(update(1, [{ block: 9, data }, { block: 8 }])).deltas.map((d) => d.delta.readUInt32LE(1)),
    [8],
  );
});

test('an update that names the new map page also clears the old block on it, and only if it lies there', () => {
  const data = walTuple('x');
  const map = Buffer.alloc(BLCKSZ);
  for (const b of [8, 9]) vmSet(map, b, VM_VALID_BITS);
  heapRedo(map, update(3, [{ block: 9, data }, { block: 8 }, { block: 0, fork: FORK_VM }]), 2, 18);
  assert.deepEqual([vmGet(map, 8), vmGet(map, 9)], [0, 0]);
  const other = Buffer.alloc(BLCKSZ);
  vmSet(other, 8, VM_VALID_BITS); // 8 + 32,672 shares its position; the old block lies on map page 0, this is page 1
  vmSet(other, 40_000, VM_VALID_BITS);
  heapRedo(other, update(3, [{ block: 40_000, data }, { block: 8 }, { block: 1, fork: FORK_VM }]), 2, 18);
  assert.deepEqual([vmGet(other, 8), vmGet(other, 40_000)], [3, 0]);
});

test('free space is recorded below a fifth of a page, never for HOT updates, always after pruning', () => {
  const page = pageWith('x'.repeat(1000));
  const roomy = insert(2, 'y');
  assert.deepEqual(effectsOf(roomy).hints, [7]);
  assert.equal(freeSpaceAfter(roomy, 0, page, 18), undefined);
  const full = pageWith('x'.repeat(7000));
  assert.equal(freeSpaceAfter(roomy, 0, full, 18), heapFreeSpace(full));
  assert.deepEqual(effectsOf(update(0, [{ block: 7, data: walTuple('x') }], 0x40)).hints, []);
  const prune = record(RM_HEAP2_ID, 0x10, Buffer.from([0, 0x84]), [{ block: 7, data: Buffer.from([1, 0, 1, 0]) }]);
  assert.deepEqual(effectsOf(prune).hints, [7]);
  heap2Redo(page, prune, 0, 18);
  assert.equal(maxOffset(page), 0);
  assert.equal(freeSpaceAfter(prune, 0, page, 18), BLCKSZ - 24 - 4);
});

test('the three records of 16 that later majors have as one: prune, vacuum, freeze', () => {
  const u16s = (...values: number[]): Buffer => Buffer.from(Uint16Array.from(values).buffer);
  const of16 = (op: number, main: Buffer, data: Buffer): DecodedRecord => record(RM_HEAP2_ID, op, main, [{ block: 7, data }]);
  const page = pageWith('one', 'two', 'three', 'four', 'five');
  // One redirection (1 to 4), one dead (2), and what is left of the data is unused (3).
  const prune = of16(0x10, Buffer.concat([u16s(0, 0, 1, 1), Buffer.from([0])]), u16s(1, 4, 2, 3));
  heap2Redo(page, prune, 0, 16);
  assert.deepEqual(
    [1, 2, 3, 4, 5].map((n) => itemFlags(itemId(page, n))),
    [LP_REDIRECT, LP_DEAD, 0, LP_NORMAL, LP_NORMAL],
  );
  assert.equal(itemOffset(itemId(page, 1)), 4);
  const room = page.readUInt16LE(14);
  // Freeing line pointers moves no tuple.
  const vacuum = of16(0x20, u16s(1), u16s(2));
  heap2Redo(page, vacuum, 0, 16);
  assert.deepEqual([itemFlags(itemId(page, 2)), page.readUInt16LE(14)], [0, room]);
  // One plan for the two tuples: xmax 0, infomask2, infomask, flags, count; then their line pointers.
  const plan = Buffer.concat([u16s(0, 0, 0x8001, 0x0b02, 0, 2), u16s(4, 5)]);
  const freeze = of16(0x30, Buffer.concat([u16s(0, 0, 1), Buffer.from([0])]), plan);
  heap2Redo(page, freeze, 0, 16);
  for (const n of [4, 5]) assert.equal(page.readUInt16LE(itemOffset(itemId(page, n)) + 20), 0x0b02);
  // Space is looked at after the first two only.
  assert.deepEqual(
    [prune, vacuum, freeze].map((r) => freeSpaceAfter(r, 0, page, 16)),
    [heapFreeSpace(page), heapFreeSpace(page), undefined],
  );
  for (const lie of [
    of16(0x10, Buffer.concat([u16s(0, 0, 2, 1), Buffer.from([0])]), u16s(1, 4, 2, 3)),
    of16(0x10, u16s(0, 0, 1, 1), u16s(1, 4, 2, 3)),
    of16(0x20, u16s(2), u16s(4)),
    of16(0x20, u16s(1), u16s(4, 5)),
    of16(0x20, u16s(1), u16s(6)),
    of16(0x30, Buffer.concat([u16s(0, 0, 2), Buffer.from([0])]), plan),
    of16(0x30, Buffer.concat([u16s(0, 0, 1), Buffer.from([0])]), plan.subarray(0, -2)),
  ])
    assert.throws(
      () => heap2Redo(Buffer.from(page), lie, 0, 16),
      (e) => isCode(e, 'CORRUPT'),
    );
});

test('visible sets the page flag without moving the LSN, and the map with it', () => {
  const page = pageWith('x');
  const before = pageLsn(page);
  const visible = record(RM_HEAP2_ID, 0x40, Buffer.from([0, 0, 0, 0, 3]), [{ block: 0, fork: FORK_VM }, { block: 7 }]);
  heap2Redo(page, visible, 1, 18);
  assert.notEqual(pdFlags(page) & PD_ALL_VISIBLE, 0);
  assert.equal(pageLsn(page), before);
  const map = Buffer.alloc(BLCKSZ);
  heap2Redo(map, visible, 0, 18);
  assert.equal(vmGet(map, 7), 3);
  assert.equal(isNewPage(map), false);
});

test('a hostile record ends in CORRUPT or leaves a page: nothing else, and never outside its 8 KiB', () => {
  const bytes = fc.uint8Array({ maxLength: 60 }).map((b) => Buffer.from(b));
  const small = fc
    .array(fc.oneof(fc.constantFrom(0, 1, 2, 3, 4, 16, 32, 64, 128, 255), fc.nat(255)), { maxLength: 40 })
    .map((a) => Buffer.from(a));
  const data = fc.oneof(bytes, small);
  const arena = Buffer.alloc(BLCKSZ * 3, 0xaa);
  const page = arena.subarray(BLCKSZ, 2 * BLCKSZ);
  fc.assert(
    fc.property(
      fc.constantFrom(RM_HEAP_ID, RM_HEAP2_ID),
      fc.nat(15),
      small,
      data,
      fc.boolean(),
      fc.nat(3),
      (rmid, op, main, blockData, second, kind) => {
        if (kind === 0) page.fill(0);
        else pageWith('abc', 'x'.repeat(700), 'def').copy(page);
        if (kind === 2) page.writeUInt16LE(0xffff, 12);
        if (kind === 3) page.writeUInt32LE(0xffff_ffff, 28);
        const r = record(rmid, op << 4, main, [{ block: 7, data: blockData }, second ? { block: 9 } : undefined]);
        for (const step of [
          () => effectsOf(r),
          () => (rmid === RM_HEAP_ID ? heapRedo : heap2Redo)(page, r, 0, 18),
          () => second && (rmid === RM_HEAP_ID ? heapRedo : heap2Redo)(page, r, 1, 18),
        ]) {
          try {
            step();
          } catch (error) {
            if (!(error instanceof LakebaseError && error.code === 'CORRUPT') && !(error instanceof RangeError)) throw error;
          }
        }
        assert.ok(arena.subarray(0, BLCKSZ).every((b) => b === 0xaa) && arena.subarray(2 * BLCKSZ).every((b) => b === 0xaa));
      },
    ),
    { numRuns: 3000 },
  );
});
