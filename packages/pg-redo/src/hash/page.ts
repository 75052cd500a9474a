/** Making hash index pages (_hash_initbuf, _hash_initbitmapbuffer), and the bits of a bitmap page. */
import { type DecodedBlock, type DecodedRecord, initPage, PAGE_HEADER_BYTES, setPdLower } from '@lakebase/pg-format';
import { blockData, INVALID_BLOCK } from '../index-page.ts';
import { corrupt } from '../record-error.ts';
import * as c from './codes.ts';

export function initHashPage(page: Buffer, fields: { readonly prev: number; readonly bucket: number; readonly flags: number }): void {
  initPage(page, c.OPAQUE_BYTES);
  page.writeUInt32LE(fields.prev, c.OPAQUE_PREV);
  page.writeUInt32LE(INVALID_BLOCK, c.OPAQUE_NEXT);
  page.writeUInt32LE(fields.bucket, c.OPAQUE_BUCKET);
  page.writeUInt16LE(fields.flags, c.OPAQUE_FLAGS);
  page.writeUInt16LE(c.HASHO_PAGE_ID, c.OPAQUE_PAGE_ID);
}

/** All bits set: every overflow page it stands for is in use or does not exist. */
export function initBitmapPage(page: Buffer, record: DecodedRecord, bytes: number): void {
  if (bytes > c.CONTENT_BYTES) throw corrupt(record, `a bitmap of ${bytes} bytes`);
  initHashPage(page, { prev: INVALID_BLOCK, bucket: c.INVALID_BUCKET, flags: c.LH_BITMAP_PAGE });
  page.fill(0xff, PAGE_HEADER_BYTES, PAGE_HEADER_BYTES + bytes);
  setPdLower(page, PAGE_HEADER_BYTES + bytes);
}

/** SETBIT and CLRBIT of the bit the block's data names; words are little-endian, so bytes will do. */
export function changeBit(page: Buffer, record: DecodedRecord, block: DecodedBlock, value: boolean): void {
  const bit = record.buf.readUInt32LE(blockData(record, block, 4));
  if (bit >= c.CONTENT_BYTES * 8) throw corrupt(record, `no bit ${bit} in a bitmap page`);
  const at = PAGE_HEADER_BYTES + (bit >>> 3);
  const mask = 1 << (bit & 7);
  page[at] = value ? (page[at] as number) | mask : (page[at] as number) & ~mask;
}

export const clearHashFlag = (page: Buffer, flag: number): void =>
  void page.writeUInt16LE(page.readUInt16LE(c.OPAQUE_FLAGS) & ~flag, c.OPAQUE_FLAGS);
