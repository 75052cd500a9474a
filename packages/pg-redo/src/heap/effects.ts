/** What heap and heap2 records do beside their own blocks: visibility map clears and free space hints.
 *  Invariants: (1) every block a record names is emitted once; (2) a record that says it cleared PD_ALL_VISIBLE (or all-frozen) clears
 *  the map, through the map page it names or else through a delta: never neither; (3) a free space hint is emitted exactly where redo may
 *  call XLogRecordPageWithFreeSpace, and {@link freeSpaceAfter} says whether it does. */
import { type DecodedRecord, freeSpace, heapFreeSpace, RM_HEAP2_ID } from '@lakebase/pg-format';
import { BLCKSZ, FORK_MAIN, FORK_VM, type RelTag } from '@lakebase/ids';
import type { EffectSink } from '../effects.ts';
import * as c from './heap-codes.ts';
import { vmClearDelta } from './heap-delta.ts';
import * as t from './heap-page.ts';
import { frees } from './prune.ts';
import { VM_ALL_FROZEN, VM_VALID_BITS, vmPageOf } from './vm.ts';

/** "Low on space" for inserts: below a fifth of a page. */
const LOW_SPACE: number = Math.floor(BLCKSZ / 5);

function emitBlocks(record: DecodedRecord, sink: EffectSink): void {
  for (let i = 0; i <= record.maxBlockId; i++) if (record.blocks[i]?.inUse === true) sink.block(i);
}

/** Whether a heap or heap2 record's block of this id is a visibility map page. */
export function isMapBlock(rmid: number, info: number, blockId: number): boolean {
  const op = info & c.XLOG_HEAP_OPMASK;
  if (rmid === RM_HEAP2_ID) return op === c.XLOG_HEAP2_VISIBLE ? blockId === 0 : blockId >= c.MULTI_INSERT_VM_BLOCK;
  return blockId >= (op === c.XLOG_HEAP_UPDATE || op === c.XLOG_HEAP_HOT_UPDATE ? c.UPDATE_VM_NEW_BLOCK : c.INSERT_VM_BLOCK);
}

/** Reused: most inserts and updates give a hint, and what a sink is handed is valid during the call only. */
const hintTag: { -readonly [K in keyof RelTag]: RelTag[K] } = { spc: 0, db: 0, rel: 0, fork: FORK_MAIN };

function emitHint(record: DecodedRecord, blockId: number, major: number, sink: EffectSink): void {
  if (!hintsFreeSpace(record, blockId, major)) return;
  const block = t.blockOf(record, blockId);
  hintTag.spc = block.spc;
  hintTag.db = block.db;
  hintTag.rel = block.rel;
  sink.freeSpaceHint(hintTag, block.block);
}

function mapOf(record: DecodedRecord): RelTag {
  const block = t.blockOf(record, 0);
  return { spc: block.spc, db: block.db, rel: block.rel, fork: FORK_VM };
}

export function heapEffects(record: DecodedRecord, major: number, sink: EffectSink): void {
  emitBlocks(record, sink);
  const op = record.info & c.XLOG_HEAP_OPMASK;
  switch (op) {
    case c.XLOG_HEAP_INSERT:
      clearVm(
        record,
        record.buf[t.mainData(record, c.INSERT_BYTES) + 2] as number,
        c.XLH_INSERT_ALL_VISIBLE_CLEARED,
        VM_VALID_BITS,
        c.INSERT_VM_BLOCK,
        sink,
      );
      break;
    case c.XLOG_HEAP_DELETE:
      clearVm(
        record,
        record.buf[t.mainData(record, c.DELETE_BYTES) + 7] as number,
        c.XLH_DELETE_ALL_VISIBLE_CLEARED,
        VM_VALID_BITS,
        c.DELETE_VM_BLOCK,
        sink,
      );
      break;
    case c.XLOG_HEAP_UPDATE:
    case c.XLOG_HEAP_HOT_UPDATE:
      clearVmOfUpdate(record, sink);
      break;
    case c.XLOG_HEAP_LOCK:
      clearVm(
        record,
        record.buf[t.mainData(record, c.LOCK_BYTES) + 7] as number,
        c.XLH_LOCK_ALL_FROZEN_CLEARED,
        VM_ALL_FROZEN,
        c.LOCK_VM_BLOCK,
        sink,
      );
      break;
    default:
      break;
  }
  emitHint(record, 0, major, sink);
}

export function heap2Effects(record: DecodedRecord, major: number, sink: EffectSink): void {
  emitBlocks(record, sink);
  let heapBlockId = 0;
  switch (record.info & c.XLOG_HEAP_OPMASK) {
    case c.XLOG_HEAP2_PRUNE_ON_ACCESS:
    case c.XLOG_HEAP2_PRUNE_VACUUM_SCAN:
    case c.XLOG_HEAP2_PRUNE_VACUUM_CLEANUP:
      break;
    case c.XLOG_HEAP2_VISIBLE:
      heapBlockId = 1;
      break;
    case c.XLOG_HEAP2_MULTI_INSERT:
      clearVm(
        record,
        record.buf[t.mainData(record, c.MULTI_INSERT_BYTES)] as number,
        c.XLH_INSERT_ALL_VISIBLE_CLEARED,
        VM_VALID_BITS,
        c.MULTI_INSERT_VM_BLOCK,
        sink,
      );
      break;
    case c.XLOG_HEAP2_LOCK_UPDATED:
      clearVm(
        record,
        record.buf[t.mainData(record, c.LOCK_BYTES) + 7] as number,
        c.XLH_LOCK_ALL_FROZEN_CLEARED,
        VM_ALL_FROZEN,
        c.LOCK_VM_BLOCK,
        sink,
      );
      break;
    default:
      return;
  }
  emitHint(record, heapBlockId, major, sink);
}

function clearVm(record: DecodedRecord, flags: number, flag: number, bits: number, vmBlockId: number, sink: EffectSink): void {
  if ((flags & flag) === 0 || t.hasBlock(record, vmBlockId)) return;
  const heapBlock = t.blockOf(record, 0).block;
  sink.relDelta(mapOf(record), vmPageOf(heapBlock), vmClearDelta(heapBlock, bits));
}

/** An update that names a map page names all it changed: the missing one, if any, had its bits clear already. */
function clearVmOfUpdate(record: DecodedRecord, sink: EffectSink): void {
  const flags = record.buf[t.mainData(record, c.UPDATE_BYTES) + 7] as number;
  const newCleared = (flags & c.XLH_UPDATE_NEW_ALL_VISIBLE_CLEARED) !== 0;
  const oldCleared = (flags & c.XLH_UPDATE_OLD_ALL_VISIBLE_CLEARED) !== 0;
  if (!newCleared && !oldCleared) return;
  if (t.hasBlock(record, c.UPDATE_VM_NEW_BLOCK) || t.hasBlock(record, c.UPDATE_VM_OLD_BLOCK)) return;
  const tag = mapOf(record);
  const newBlock = t.blockOf(record, 0).block;
  const oldBlock = t.hasBlock(record, c.UPDATE_OLD_BLOCK) ? t.blockOf(record, c.UPDATE_OLD_BLOCK).block : newBlock;
  if (oldCleared && newCleared && oldBlock !== newBlock && vmPageOf(oldBlock) === vmPageOf(newBlock)) {
    // One delta for one page at one LSN.
    sink.relDelta(
      tag,
      vmPageOf(newBlock),
      Buffer.concat([vmClearDelta(oldBlock, VM_VALID_BITS), vmClearDelta(newBlock, VM_VALID_BITS).subarray(1)]),
    );
    return;
  }
  if (oldCleared) sink.relDelta(tag, vmPageOf(oldBlock), vmClearDelta(oldBlock, VM_VALID_BITS));
  if (newCleared && !(oldCleared && oldBlock === newBlock)) sink.relDelta(tag, vmPageOf(newBlock), vmClearDelta(newBlock, VM_VALID_BITS));
}

/** Whether redo of this record may record free space for heap block `blockId`, as far as the record alone tells. */
export function hintsFreeSpace(record: DecodedRecord, blockId: number, major: number): boolean {
  const block = record.blocks[blockId];
  if (blockId > record.maxBlockId || block === undefined || !block.inUse) return false;
  const op = record.info & c.XLOG_HEAP_OPMASK;
  if (record.rmid !== RM_HEAP2_ID) {
    // Not when the page came from an image, and never for HOT updates: their space returns with the next pruning.
    return blockId === 0 && !block.applyImage && (op === c.XLOG_HEAP_INSERT || op === c.XLOG_HEAP_UPDATE);
  }
  switch (op) {
    case c.XLOG_HEAP2_MULTI_INSERT:
      return blockId === 0 && !block.applyImage;
    case c.XLOG_HEAP2_VISIBLE:
      return blockId === 1 && ((record.buf[t.mainData(record, c.VISIBLE_BYTES) + 4] as number) & VM_VALID_BITS) !== 0;
    case c.XLOG_HEAP2_PRUNE_ON_ACCESS:
    case c.XLOG_HEAP2_PRUNE_VACUUM_SCAN:
    case c.XLOG_HEAP2_PRUNE_VACUUM_CLEANUP:
      return blockId === 0 && frees(record, major);
    default:
      return false;
  }
}

/** Free bytes that redo of this record puts into the FSM for heap block `blockId`, given the page after it; undefined when it does not.
 *  The FSM slot becomes `fsmCategory` of it. */
export function freeSpaceAfter(record: DecodedRecord, blockId: number, pageAfter: Buffer, major: number): number | undefined {
  if (!hintsFreeSpace(record, blockId, major)) return undefined;
  if (record.rmid === RM_HEAP2_ID) {
    const op = record.info & c.XLOG_HEAP_OPMASK;
    if (op === c.XLOG_HEAP2_VISIBLE) return freeSpace(pageAfter);
    if (op !== c.XLOG_HEAP2_MULTI_INSERT) return heapFreeSpace(pageAfter);
  }
  const space = heapFreeSpace(pageAfter);
  return space < LOW_SPACE ? space : undefined;
}
