/** What VACUUM logs of SP-GiST pages: leaf pages, a root that is a leaf, and redirections no scan needs any more. */
import { type DecodedRecord, checkedItemId, indexMultiDelete, maxOffset, setItemId } from '@lakebase/pg-format';
import { checkSpecial, INVALID_BLOCK, itemStart, readOffsets, writeTid } from '../index-page.ts';
import { corrupt, mainData } from '../record-error.ts';
import * as c from './codes.ts';
import { addToCount, deleteLeaving, NOWHERE } from './page.ts';

const leave = (state: number) => ({ first: state, rest: state, target: NOWHERE, redirectXid: 0 });

export function vacuumLeaf(page: Buffer, record: DecodedRecord): void {
  checkSpecial(page, record, c.OPAQUE_BYTES);
  const main = mainData(record, c.VACUUM_LEAF_BYTES);
  const { buf } = record;
  const end = main + record.mainLength;
  let at = main + c.VACUUM_LEAF_BYTES;
  const list = (count: number): number[] => {
    const offnums = readOffsets(record, at, count, end);
    at += count * 2;
    return offnums;
  };
  const moves = buf.readUInt16LE(main + 4);
  const chains = buf.readUInt16LE(main + 6);
  const dead = list(buf.readUInt16LE(main));
  const placeholders = list(buf.readUInt16LE(main + 2));
  const moveFrom = list(moves);
  const moveTo = list(moves);
  const chainFrom = list(chains);
  const chainTo = list(chains);

  deleteLeaving(page, record, dead, leave(c.SPGIST_DEAD));
  deleteLeaving(page, record, placeholders, leave(c.SPGIST_PLACEHOLDER));
  // A live tuple takes the number of the chain's dead head; the dead one then goes under the old number.
  for (let i = 0; i < moves; i++) {
    const from = moveFrom[i] as number;
    const to = moveTo[i] as number;
    const id = checkedItemId(page, from);
    setItemId(page, from, checkedItemId(page, to));
    setItemId(page, to, id);
  }
  deleteLeaving(page, record, moveFrom, leave(c.SPGIST_PLACEHOLDER));
  for (let i = 0; i < chains; i++) setNextOffset(page, record, chainFrom[i] as number, chainTo[i] as number);
}

/** SGLT_SET_NEXTOFFSET of the leaf tuple at `offnum`. */
export function setNextOffset(page: Buffer, record: DecodedRecord, offnum: number, next: number): void {
  const at = itemStart(page, record, offnum, c.LEAF_HEADER_BYTES) + 4;
  page.writeUInt16LE((page.readUInt16LE(at) & ~c.NEXT_OFFSET_MASK) | (next & c.NEXT_OFFSET_MASK), at);
}

export function vacuumRoot(page: Buffer, record: DecodedRecord): void {
  checkSpecial(page, record, c.OPAQUE_BYTES);
  const main = mainData(record, c.VACUUM_ROOT_BYTES);
  const count = record.buf.readUInt16LE(main);
  indexMultiDelete(page, readOffsets(record, main + c.VACUUM_ROOT_BYTES, count, main + record.mainLength));
}

export function vacuumRedirect(page: Buffer, record: DecodedRecord): void {
  checkSpecial(page, record, c.OPAQUE_BYTES);
  const main = mainData(record, c.VACUUM_REDIRECT_BYTES);
  const { buf } = record;
  const count = buf.readUInt16LE(main);
  const firstPlaceholder = buf.readUInt16LE(main + 2);
  for (const offnum of readOffsets(record, main + c.VACUUM_REDIRECT_BYTES, count, main + record.mainLength)) {
    const at = itemStart(page, record, offnum, c.DEAD_TUPLE_BYTES);
    page.writeUInt32LE((page.readUInt32LE(at) | c.SPGIST_PLACEHOLDER) >>> 0, at);
    writeTid(page, at + c.DEAD_POINTER, INVALID_BLOCK, 0);
  }
  addToCount(page, c.OPAQUE_REDIRECTIONS, -count);
  addToCount(page, c.OPAQUE_PLACEHOLDERS, count);
  if (firstPlaceholder === 0) return;
  // Placeholders at the end of the page go altogether.
  const last = maxOffset(page);
  if (firstPlaceholder > last + 1) throw corrupt(record, `placeholders from ${firstPlaceholder} on a page of ${last} items`);
  const gone: number[] = [];
  for (let offnum = firstPlaceholder; offnum <= last; offnum++) gone.push(offnum);
  addToCount(page, c.OPAQUE_PLACEHOLDERS, -gone.length);
  indexMultiDelete(page, gone);
}
