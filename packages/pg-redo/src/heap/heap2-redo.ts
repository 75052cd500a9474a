/** Redo of the heap2 resource manager: pruning and freezing (prune.ts), visibility map set, multi-insert, lock of an updated version.
 *  Invariants: as in heap-redo.ts. */
import { clearPdFlag, type DecodedRecord, initPage, isNewPage, PD_ALL_VISIBLE, setPageLsn, setPdFlag } from '@lakebase/pg-format';
import * as c from './heap-codes.ts';
import * as t from './heap-page.ts';
import { addTupleFromWal, redoVmClear, replaceXmaxBits } from './heap-redo.ts';
import { redoPrune } from './prune.ts';
import { VM_ALL_FROZEN, VM_VALID_BITS, vmSet } from './vm.ts';

export function heap2Redo(page: Buffer, record: DecodedRecord, blockId: number, major: number): void {
  switch (record.info & c.XLOG_HEAP_OPMASK) {
    case c.XLOG_HEAP2_PRUNE_ON_ACCESS:
    case c.XLOG_HEAP2_PRUNE_VACUUM_SCAN:
    case c.XLOG_HEAP2_PRUNE_VACUUM_CLEANUP:
      return redoPrune(page, record, major);
    case c.XLOG_HEAP2_VISIBLE:
      return redoVisible(page, record, blockId);
    case c.XLOG_HEAP2_MULTI_INSERT:
      if (blockId === c.MULTI_INSERT_VM_BLOCK) return redoVmClear(page, record, blockId, VM_VALID_BITS);
      return redoMultiInsert(page, record);
    case c.XLOG_HEAP2_LOCK_UPDATED:
      if (blockId === c.LOCK_VM_BLOCK) return redoVmClear(page, record, blockId, VM_ALL_FROZEN);
      return redoLockUpdated(page, record);
    default: // NEW_CID and REWRITE serve logical decoding only
      return;
  }
}

/** Block 0 is the map page, block 1 the heap page. The heap page keeps its LSN: it would move only with data checksums or
 *  wal_log_hints, and then the record carries an image of it anyway. */
function redoVisible(page: Buffer, record: DecodedRecord, blockId: number): void {
  const bits = (record.buf[t.mainData(record, c.VISIBLE_BYTES) + 4] as number) & VM_VALID_BITS;
  if (blockId === 0) {
    t.requireMapBlock(record, 0);
    if (vmSet(page, t.blockOf(record, 1).block, bits)) setPageLsn(page, record.endLsn);
  } else {
    if (isNewPage(page)) throw t.corruptRecord(record, 'the page it marks all-visible was never initialised');
    setPdFlag(page, PD_ALL_VISIBLE);
  }
}

function redoMultiInsert(page: Buffer, record: DecodedRecord): void {
  const buf = record.buf;
  const main = t.mainData(record, c.MULTI_INSERT_BYTES);
  const flags = buf[main] as number;
  const count = buf.readUInt16LE(main + 2);
  const init = (record.info & c.XLOG_HEAP_INIT_PAGE) !== 0;
  if (!init) t.mainData(record, c.MULTI_INSERT_BYTES + count * 2);
  const block = t.blockOf(record, 0);
  const end = block.dataOffset + block.dataLength;
  if (init) initPage(page, 0);
  else if (isNewPage(page)) throw t.corruptRecord(record, 'the page it inserts into was never initialised');
  let at = block.dataOffset;
  for (let i = 0; i < count; i++) {
    at += (at - block.dataOffset) & 1; // SHORTALIGN, counted from the start of the block's data
    if (at + c.MULTI_INSERT_TUPLE_BYTES > end) throw t.corruptRecord(record, `tuple ${i} lies outside its data`);
    const length = buf.readUInt16LE(at);
    const data = at + c.MULTI_INSERT_TUPLE_BYTES;
    if (data + length > end) throw t.corruptRecord(record, `tuple ${i} lies outside its data`);
    const offnum = init ? i + 1 : buf.readUInt16LE(main + c.MULTI_INSERT_BYTES + i * 2);
    addTupleFromWal(page, record, at + 2, data, length, block.block, offnum);
    at = data + length;
  }
  if (at !== end) throw t.corruptRecord(record, `has ${end - at} bytes after its last tuple`);
  setPageLsn(page, record.endLsn);
  if ((flags & c.XLH_INSERT_ALL_VISIBLE_CLEARED) !== 0) clearPdFlag(page, PD_ALL_VISIBLE);
  if ((flags & c.XLH_INSERT_ALL_FROZEN_SET) !== 0) setPdFlag(page, PD_ALL_VISIBLE);
}

function redoLockUpdated(page: Buffer, record: DecodedRecord): void {
  const main = t.mainData(record, c.LOCK_BYTES);
  const at = t.tupleAt(page, record, record.buf.readUInt16LE(main + 4));
  replaceXmaxBits(page, at, record.buf[main + 6] as number);
  page.writeUInt32LE(record.buf.readUInt32LE(main), at + t.T_XMAX);
  setPageLsn(page, record.endLsn);
}
