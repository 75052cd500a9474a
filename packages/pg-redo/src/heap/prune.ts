/** Pruning, vacuuming and freezing of one heap page: heap_xlog_prune_freeze since 17; heap_xlog_prune, heap_xlog_vacuum and
 *  heap_xlog_freeze_page in 16 (heapam.c; heapam_xlog.c since 18). 17 joined the three records of 16 into one that carries any of their
 *  parts; the codes 0x10, 0x20 and 0x30 are the same and mean something else.
 *  Invariants: (1) a record of any major is first read into one form, {@link parts}, and then applied by one function; (2) every list lies
 *  inside the block's data and together they are all of it. */
import {
  type DecodedRecord,
  isNewPage,
  ITEM_UNUSED,
  LP_DEAD,
  LP_REDIRECT,
  makeItemId,
  maxOffset,
  repairFragmentation,
  setItemId,
  setPageLsn,
  truncateLinePointers,
} from '@lakebase/pg-format';
import { BLCKSZ } from '@lakebase/ids';
import * as c from './heap-codes.ts';
import * as t from './heap-page.ts';

/** Where a record's lists start in record.buf, and how many entries they have. Redo is synchronous: one is enough. */
const parts = {
  /** xlhp_freeze_plan each. */
  plans: 0,
  planCount: 0,
  /** Pairs of line pointers: from, to. */
  redirected: 0,
  redirectedCount: 0,
  dead: 0,
  deadCount: 0,
  unused: 0,
  unusedCount: 0,
  /** Line pointers of the tuples to freeze, plan after plan. */
  frozen: 0,
  end: 0,
  /** Pruning moves tuples together; freeing line pointers that have no tuple any more does not. */
  movesTuples: false,
};

export function redoPrune(page: Buffer, record: DecodedRecord, major: number): void {
  if (isNewPage(page)) throw t.corruptRecord(record, 'the page it prunes was never initialised');
  if (major >= 17) readParts(record);
  else readPartsOf16(record);
  for (let i = 0; i < parts.redirectedCount; i++) {
    const at = parts.redirected + i * 4;
    setItemId(page, checkedOffnum(page, record, at), makeItemId(checkedOffnum(page, record, at + 2), LP_REDIRECT, 0));
  }
  for (let i = 0; i < parts.deadCount; i++) setItemId(page, checkedOffnum(page, record, parts.dead + i * 2), makeItemId(0, LP_DEAD, 0));
  for (let i = 0; i < parts.unusedCount; i++) setItemId(page, checkedOffnum(page, record, parts.unused + i * 2), ITEM_UNUSED);
  if (frees(record, major)) {
    if (parts.movesTuples) repairFragmentation(page);
    else truncateLinePointers(page);
  }
  let offsets = parts.frozen;
  for (let i = 0; i < parts.planCount; i++) offsets = freezeTuples(page, record, parts.plans + i * c.FREEZE_PLAN_BYTES, offsets);
  if (offsets !== parts.end) throw t.corruptRecord(record, `its prune data has ${parts.end - offsets} bytes too many`);
  setPageLsn(page, record.endLsn);
}

/** Whether the record frees line pointers or space, so that redo looks at the page's free space. Freezing alone does not. */
export function frees(record: DecodedRecord, major: number): boolean {
  if (major < 17) return (record.info & c.XLOG_HEAP_OPMASK) !== c.XLOG_HEAP2_FREEZE_PAGE_16;
  const lists = c.XLHP_HAS_REDIRECTIONS | c.XLHP_HAS_DEAD_ITEMS | c.XLHP_HAS_NOW_UNUSED_ITEMS;
  return ((record.buf[t.mainData(record, c.PRUNE_BYTES) + 1] as number) & lists) !== 0;
}

/** End of `bytes` at `at`, which must lie in the block's data. */
function within(record: DecodedRecord, at: number, bytes: number): number {
  if (at + bytes > parts.end) throw t.corruptRecord(record, `its prune data ends ${at + bytes - parts.end} bytes too early`);
  return at + bytes;
}

function resetParts(record: DecodedRecord): number {
  const block = t.blockOf(record, 0);
  parts.planCount = 0;
  parts.redirectedCount = 0;
  parts.deadCount = 0;
  parts.unusedCount = 0;
  parts.end = block.dataOffset + block.dataLength;
  return block.dataOffset;
}

/** 17 and 18: the flags say which lists there are; each has its count in front. */
function readParts(record: DecodedRecord): void {
  const { buf } = record;
  const flags = buf[t.mainData(record, c.PRUNE_BYTES) + 1] as number;
  let at = resetParts(record);
  /** Entries of the list at `at`, which then stands behind it; the entries start `header` bytes into it. */
  const takeList = (header: number, entryBytes: number): number => {
    within(record, at, header);
    const count = buf.readUInt16LE(at);
    at = within(record, at + header, count * entryBytes);
    return count;
  };
  if ((flags & c.XLHP_HAS_FREEZE_PLANS) !== 0) {
    parts.plans = at + 4;
    parts.planCount = takeList(4, c.FREEZE_PLAN_BYTES);
  }
  if ((flags & c.XLHP_HAS_REDIRECTIONS) !== 0) {
    parts.redirected = at + 2;
    parts.redirectedCount = takeList(2, 4);
  }
  if ((flags & c.XLHP_HAS_DEAD_ITEMS) !== 0) {
    parts.dead = at + 2;
    parts.deadCount = takeList(2, 2);
  }
  if ((flags & c.XLHP_HAS_NOW_UNUSED_ITEMS) !== 0) {
    parts.unused = at + 2;
    parts.unusedCount = takeList(2, 2);
  }
  parts.frozen = at;
  parts.movesTuples = (flags & c.XLHP_CLEANUP_LOCK) !== 0;
}

/** 16: counts in the main data, lists without headers. */
function readPartsOf16(record: DecodedRecord): void {
  const { buf } = record;
  const start = resetParts(record);
  let at = start;
  switch (record.info & c.XLOG_HEAP_OPMASK) {
    case c.XLOG_HEAP2_PRUNE_16: {
      const main = t.mainData(record, c.PRUNE_16_BYTES);
      parts.redirectedCount = buf.readUInt16LE(main + 4);
      parts.deadCount = buf.readUInt16LE(main + 6);
      parts.redirected = start;
      parts.dead = within(record, start, parts.redirectedCount * 4);
      parts.unused = within(record, parts.dead, parts.deadCount * 2);
      // Their number is not in the record: they are what is left.
      parts.unusedCount = Math.floor((parts.end - parts.unused) / 2);
      at = within(record, parts.unused, parts.unusedCount * 2);
      parts.movesTuples = true;
      break;
    }
    case c.XLOG_HEAP2_VACUUM_16:
      parts.unused = start;
      parts.unusedCount = buf.readUInt16LE(t.mainData(record, c.VACUUM_16_BYTES));
      at = within(record, start, parts.unusedCount * 2);
      parts.movesTuples = false;
      break;
    default:
      parts.plans = start;
      parts.planCount = buf.readUInt16LE(t.mainData(record, c.FREEZE_PAGE_16_BYTES) + 4);
      at = within(record, start, parts.planCount * c.FREEZE_PLAN_BYTES);
  }
  parts.frozen = at;
}

function checkedOffnum(page: Buffer, record: DecodedRecord, at: number): number {
  const offnum = record.buf.readUInt16LE(at);
  if (offnum < 1 || offnum > maxOffset(page) || 24 + offnum * 4 > BLCKSZ) throw t.corruptRecord(record, `the page has no item ${offnum}`);
  return offnum;
}

/** One plan, the same in all majors: xmax 0, infomask2 4, infomask 6, frzflags 8, ntuples 10. Its tuples' line pointers are at `offsets`;
 *  returns where those of the next plan start. */
function freezeTuples(page: Buffer, record: DecodedRecord, plan: number, offsets: number): number {
  const buf = record.buf;
  const count = buf.readUInt16LE(plan + 10);
  const frzflags = buf[plan + 8] as number;
  const next = within(record, offsets, count * 2);
  for (let i = 0; i < count; i++) {
    const at = t.tupleAt(page, record, buf.readUInt16LE(offsets + i * 2));
    buf.copy(page, at + t.T_XMAX, plan, plan + 4);
    // A tuple moved by a VACUUM FULL before 9.0: xvac shares its field with the command id.
    if ((frzflags & c.XLH_FREEZE_XVAC) !== 0) page.writeUInt32LE(2, at + t.T_FIELD3);
    if ((frzflags & c.XLH_INVALID_XVAC) !== 0) page.writeUInt32LE(0, at + t.T_FIELD3);
    buf.copy(page, at + t.T_INFOMASK2, plan + 4, plan + 8);
  }
  return next;
}
