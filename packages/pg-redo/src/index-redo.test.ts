/** Cases of the five index types that no workload reaches reliably: what is done to a page after its image, and records that do not fit. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { isCode } from '@lakebase/base';
import { lsn } from '@lakebase/ids';
import {
  type DecodedRecord,
  decodeRecord,
  initPage,
  maxOffset,
  newDecodedRecord,
  pageLsn,
  RM_BRIN_ID,
  RM_GIN_ID,
  RM_GIST_ID,
  RM_HASH_ID,
  RM_SPGIST_ID,
} from '@lakebase/pg-format';
import { redo } from './dispatch.ts';
import { blockHeader, makeRecord, simpleRecord } from './testing/record-maker.ts';

const END = lsn(0x7_0000_1100);
const decode = (bytes: Buffer): DecodedRecord => decodeRecord(bytes, 0, bytes.length, lsn(0x7_0000_1000), END, newDecodedRecord());

/** A record whose block `id` comes as an image of `page` to be applied, after blocks without anything. */
function withImage(rmid: number, info: number, id: number, page: Buffer, main: Buffer): DecodedRecord {
  const before = Array.from({ length: id }, (_, i) => blockHeader({ id: i }));
  const image = { length: page.length, holeOffset: 0, flags: 2 };
  return decode(
    makeRecord(rmid, info, Buffer.concat([...before, blockHeader({ id, image }), Buffer.from([255, main.length]), page, main])),
  );
}

function indexPage(special: number, flags: number): Buffer {
  const page = Buffer.alloc(8192);
  initPage(page, special);
  page.writeUInt16LE(flags, 8188);
  return page;
}

describe('fields set over a full-page image', () => {
  test('GiST: the left half of a completed split gets the record as its sequence number', () => {
    // F_LEAF | F_FOLLOW_RIGHT; PAGE_UPDATE names it as block 1, PAGE_SPLIT as block 0.
    for (const [info, id] of [
      [0x00, 1],
      [0x30, 0],
    ] as const) {
      const page = Buffer.alloc(8192, 7);
      redo(page, withImage(RM_GIST_ID, info, id, indexPage(16, 9), Buffer.alloc(24)), id, 18);
      assert.equal(page.readUInt16LE(8188), 1);
      assert.equal(page.readUInt32LE(8176), 7);
      assert.equal(page.readUInt32LE(8180), 0x1100);
      assert.equal(pageLsn(page), END);
    }
    const target = Buffer.alloc(8192);
    redo(target, withImage(RM_GIST_ID, 0x00, 0, indexPage(16, 9), Buffer.alloc(4)), 0, 18);
    assert.equal(target.readUInt16LE(8188), 9, 'the page of the downlink itself stays as in its image');
  });

  test('hash: bucket flags of a split', () => {
    const flags = Buffer.from([0x42, 0, 0x02, 0]);
    for (const id of [0, 1]) {
      const page = Buffer.alloc(8192);
      redo(page, withImage(RM_HASH_ID, 0x60, id, indexPage(16, 0x22), flags), id, 18);
      assert.equal(page.readUInt16LE(8188), id === 0 ? 0x42 : 0x02);
    }
    const page = Buffer.alloc(8192);
    redo(page, withImage(RM_HASH_ID, 0x40, 0, indexPage(16, 2), Buffer.from([9, 0, 0, 0, 0x22, 0, 0x12, 0, 0])), 0, 18);
    assert.equal(page.readUInt16LE(8188), 0x22);
    assert.equal(page.readUInt32LE(8176), 9);
  });
});

test('blocks named for their lock only keep their LSN', () => {
  for (const [info, main] of [
    [0x70, Buffer.alloc(3)],
    [0x80, Buffer.alloc(12)],
    [0x90, Buffer.alloc(2)],
  ] as const) {
    const page = indexPage(16, 2);
    const before = Buffer.from(page);
    redo(page, decode(simpleRecord({ rmid: RM_HASH_ID, info, blocks: [{ id: 0 }, { id: 1 }], main })), 0, 18);
    assert.ok(page.equals(before), `0x${info.toString(16)}`);
  }
});

test('records whose pages must come as images say so', () => {
  for (const [rmid, info] of [
    [RM_HASH_ID, 0x50],
    [RM_GIN_ID, 0x30],
    [RM_GIN_ID, 0x40],
  ] as const) {
    const record = decode(simpleRecord({ rmid, info, blocks: [{ id: 0 }], main: Buffer.alloc(40) }));
    assert.throws(
      () => redo(indexPage(16, 0), record, 0, 18),
      (error) => isCode(error, 'CORRUPT') && /without the image/.test(error.message),
    );
  }
});

test('BRIN: pages from nothing, and the place of a range in the map', () => {
  const meta = Buffer.alloc(8192, 1);
  const create = Buffer.from([128, 0, 0, 0, 1, 0]);
  redo(meta, decode(simpleRecord({ rmid: RM_BRIN_ID, info: 0, blocks: [{ id: 0, willInit: true }], main: create })), 0, 18);
  assert.equal(meta.toString('hex', 24, 40), 'fa9c10a8' + '01000000' + '80000000' + '00000000');
  assert.equal(meta.readUInt16LE(8190), 0xf091);

  const map = Buffer.alloc(8192);
  redo(map, decode(simpleRecord({ rmid: RM_BRIN_ID, info: 0x40, blocks: [{ id: 1, willInit: true }], main: Buffer.alloc(4) })), 1, 18);
  // Range 1361 of 2 pages each: second entry of the second map page. Its summary is item 3 of block 5.
  const insert = Buffer.alloc(10);
  insert.writeUInt32LE(2723, 0);
  insert.writeUInt32LE(2, 4);
  insert.writeUInt16LE(3, 8);
  map.fill(0, 0, 8);
  redo(map, decode(simpleRecord({ rmid: RM_BRIN_ID, info: 0x10, blocks: [{ id: 0, block: 5 }, { id: 1 }], main: insert })), 1, 18);
  assert.equal(map.toString('hex', 24, 42), '000000000000' + '000005000300' + '000000000000');
});

test('SP-GiST: an existing item is replaced only when it is a placeholder', () => {
  const page = Buffer.alloc(8192);
  const leaf = Buffer.alloc(16);
  leaf.writeUInt32LE(16 << 2, 0);
  const add = (fresh: number, offnum: number): void => {
    const main = Buffer.concat([Buffer.from([fresh, 0, offnum, 0, 0, 0, 0, 0, 0, 0]), leaf]);
    page.fill(0, 0, 8);
    redo(page, decode(simpleRecord({ rmid: RM_SPGIST_ID, info: 0x10, blocks: [{ id: 0, willInit: fresh === 1 }], main })), 0, 18);
  };
  add(1, 1);
  add(0, 2);
  assert.equal(maxOffset(page), 2);
  assert.throws(
    () => add(0, 2),
    (error) => isCode(error, 'CORRUPT') && /no placeholder/.test(error.message),
  );
});

test('GIN: an uncompressed posting tree is refused with what to do about it', () => {
  const page = Buffer.alloc(8192);
  initPage(page, 8);
  page.writeUInt16LE(3, 8190);
  const record = decode(simpleRecord({ rmid: RM_GIN_ID, info: 0x90, blocks: [{ id: 0, data: Buffer.alloc(2) }] }));
  assert.throws(
    () => redo(page, record, 0, 18),
    (error) => isCode(error, 'UNSUPPORTED') && /REINDEX/.test(error.message),
  );
});
