/** Redo of deduplication (btree_xlog_dedup): the page is put together anew, runs of items merged into posting lists. */
import { BLCKSZ } from '@lakebase/ids';
import {
  checkedItemId,
  type DecodedBlock,
  type DecodedRecord,
  initPage,
  itemLength,
  itemOffset,
  maxOffset,
  pageAddItem,
} from '@lakebase/pg-format';
import { corrupt, mainData } from '../record-error.ts';
import { BTP_HAS_GARBAGE, OPAQUE_BYTES, OPAQUE_FLAGS, OPAQUE_NEXT, OPAQUE_OFFSET, P_HIKEY, P_NONE, TID_BYTES } from './codes.ts';
import { formPosting, isPosting, postingCount, postingStart, tupleSize } from './tuple.ts';

export function dedup(
  page: Buffer,
  record: DecodedRecord,
  block: DecodedBlock,
  scratch: { rebuilt: Buffer; tuple: Buffer; tids: Buffer },
): void {
  const { rebuilt, tuple, tids } = scratch;
  const { buf } = record;
  const intervals = buf.readUInt16LE(mainData(record, 2));
  if (intervals * 4 > block.dataLength) throw corrupt(record, `${intervals} intervals in ${block.dataLength} bytes`);
  initPage(rebuilt, OPAQUE_BYTES);
  page.copy(rebuilt, OPAQUE_OFFSET, OPAQUE_OFFSET, BLCKSZ);
  let n = 0;
  const add = (src: Buffer, at: number, size: number): void => {
    n++;
    if (pageAddItem(rebuilt, src, at, size, n, 0) === 0) throw corrupt(record, `item ${n} does not fit`);
  };
  const items = maxOffset(page);
  let offnum = 1;
  if (page.readUInt32LE(OPAQUE_NEXT) !== P_NONE) {
    const id = checkedItemId(page, P_HIKEY);
    add(page, itemOffset(id), itemLength(id));
    offnum = P_HIKEY + 1;
  }
  let interval = 0;
  while (offnum <= items) {
    const id = checkedItemId(page, offnum);
    const base = itemOffset(id);
    const baseSize = tupleSize(page, base, base + itemLength(id));
    const at = block.dataOffset + interval * 4;
    if (interval >= intervals || buf.readUInt16LE(at) !== offnum) {
      add(page, base, baseSize);
      offnum++;
      continue;
    }
    const count = buf.readUInt16LE(at + 2);
    const end = Math.min(offnum + Math.max(count, 1), items + 1);
    const keySize = isPosting(page, base) ? postingStart(page, base, baseSize) : baseSize;
    let total = 0;
    const first = offnum;
    for (; offnum < end; offnum++) {
      const memberId = checkedItemId(page, offnum);
      const member = itemOffset(memberId);
      const size = tupleSize(page, member, member + itemLength(memberId));
      const posting = isPosting(page, member);
      const from = posting ? member + postingStart(page, member, size) : member;
      const more = posting ? postingCount(page, member) : 1;
      if ((total + more) * TID_BYTES > tids.length) throw corrupt(record, `interval ${interval} has too many TIDs`);
      page.copy(tids, total * TID_BYTES, from, from + more * TID_BYTES);
      total += more;
    }
    if (offnum - first === 1) add(page, base, baseSize);
    else {
      add(tuple, 0, formPosting(page, base, keySize, tids, total, tuple));
      interval++;
    }
  }
  if (interval !== intervals) throw corrupt(record, `${intervals} intervals, ${interval} were found`);
  rebuilt.writeUInt16LE(rebuilt.readUInt16LE(OPAQUE_FLAGS) & ~BTP_HAS_GARBAGE, OPAQUE_FLAGS);
  rebuilt.copy(page);
}
