/** One table of resource managers: what each does to a page, and what effects its records have.
 *  Invariants: (1) whatever a record contains, the outcome is a page, effects, or a LakebaseError that names the record; (2) a full-page image
 *  is restored here, whichever resource manager wrote it; (3) `redo` is synchronous and keeps nothing between calls. */
import { isCode, LakebaseError } from '@lakebase/base';
import { BLCKSZ, FORK_FSM, FORK_INIT, FORK_MAIN, FORK_VM } from '@lakebase/ids';
import {
  type DecodedRecord,
  isNewPage,
  pageLsn,
  RM_BRIN_ID,
  RM_BTREE_ID,
  RM_CLOG_ID,
  RM_COMMIT_TS_ID,
  RM_DBASE_ID,
  RM_GENERIC_ID,
  RM_GIN_ID,
  RM_GIST_ID,
  RM_HASH_ID,
  RM_HEAP_ID,
  RM_HEAP2_ID,
  RM_LOGICALMSG_ID,
  RM_MULTIXACT_ID,
  RM_RELMAP_ID,
  RM_REPLORIGIN_ID,
  RM_SEQ_ID,
  RM_SMGR_ID,
  RM_SPGIST_ID,
  RM_STANDBY_ID,
  RM_TBLSPC_ID,
  RM_XACT_ID,
  RM_XLOG_ID,
  rmgrName,
  setPageLsn,
} from '@lakebase/pg-format';
import { brinRedo } from './brin/redo.ts';
import { btreeRedo } from './btree/redo.ts';
import type { EffectSink } from './effects.ts';
import { ginRedo } from './gin/redo.ts';
import { gistAfterImage, gistRedo } from './gist/redo.ts';
import { hashAfterImage, hashRedo } from './hash/redo.ts';
import { heap2Effects, heap2Redo, heapEffects, heapRedo, isMapBlock } from './heap/index.ts';
import { restoreImage } from './image.ts';
import { corrupt, describeRecord, unsupported } from './record-error.ts';
import { genericRedo } from './rmgr/generic.ts';
import { sequenceRedo } from './rmgr/sequence.ts';
import { clogEffects, commitTsEffects, multixactEffects } from './rmgr/slru.ts';
import { originEffects, standbyEffects } from './rmgr/standby.ts';
import { dbaseEffects, relmapEffects, smgrEffects, tablespaceEffects } from './rmgr/storage.ts';
import { xactEffects } from './rmgr/transaction.ts';
import { xlogEffects, xlogRedo } from './rmgr/xlog.ts';
import { spgistRedo } from './spgist/redo.ts';

interface ResourceManager {
  /** Absent: its records name no blocks. */
  readonly redo?: (page: Buffer, record: DecodedRecord, blockId: number, major: number) => void;
  /** What is still to be done to a page that came as an image: Postgres sets a few fields after it has logged the page. */
  readonly afterImage?: (page: Buffer, record: DecodedRecord, blockId: number) => void;
  readonly effects: (record: DecodedRecord, major: number, sink: EffectSink) => void;
}

function blockEffects(record: DecodedRecord, _major: number, sink: EffectSink): void {
  for (let i = 0; i <= record.maxBlockId; i++) if (record.blocks[i]?.inUse === true) sink.block(i);
}

const noEffects = (): void => {};

function refuse(record: DecodedRecord): LakebaseError {
  const help = `WAL of the resource manager ${rmgrName(record.rmid)} is not supported; remove the extension that writes it`;
  return unsupported(record, `${help}. Ingest of this branch resumes here after an upgrade of the pageserver`);
}

const TABLE: readonly (ResourceManager | undefined)[] = Object.assign(new Array<ResourceManager | undefined>(256).fill(undefined), {
  [RM_XLOG_ID]: { redo: xlogRedo, effects: xlogEffects },
  [RM_XACT_ID]: { effects: xactEffects },
  [RM_SMGR_ID]: { effects: smgrEffects },
  [RM_CLOG_ID]: { effects: clogEffects },
  [RM_DBASE_ID]: { effects: dbaseEffects },
  [RM_TBLSPC_ID]: { effects: tablespaceEffects },
  [RM_MULTIXACT_ID]: { effects: multixactEffects },
  [RM_RELMAP_ID]: { effects: relmapEffects },
  [RM_STANDBY_ID]: { effects: standbyEffects },
  [RM_HEAP2_ID]: { redo: heap2Redo, effects: heap2Effects },
  [RM_HEAP_ID]: { redo: heapRedo, effects: heapEffects },
  [RM_BTREE_ID]: { redo: btreeRedo, effects: blockEffects },
  [RM_HASH_ID]: { redo: hashRedo, afterImage: hashAfterImage, effects: blockEffects },
  [RM_GIN_ID]: { redo: ginRedo, effects: blockEffects },
  [RM_GIST_ID]: { redo: gistRedo, afterImage: gistAfterImage, effects: blockEffects },
  [RM_SEQ_ID]: { redo: sequenceRedo, effects: blockEffects },
  [RM_SPGIST_ID]: { redo: spgistRedo, effects: blockEffects },
  [RM_BRIN_ID]: { redo: brinRedo, effects: blockEffects },
  [RM_COMMIT_TS_ID]: { effects: commitTsEffects },
  [RM_REPLORIGIN_ID]: { effects: originEffects },
  [RM_GENERIC_ID]: { redo: genericRedo, effects: blockEffects },
  [RM_LOGICALMSG_ID]: { effects: noEffects },
});

/** Which forks but the main one a record may change (its full-page images may be of any): the map where heap records name it, the init fork
 *  of an index or sequence, and what an extension likes. */
function forkFits({ rmid, info }: DecodedRecord, blockId: number, fork: number): boolean {
  if (rmid === RM_GENERIC_ID) return true;
  if (rmid !== RM_HEAP_ID && rmid !== RM_HEAP2_ID) return fork === FORK_INIT;
  return fork === FORK_VM && isMapBlock(rmid, info, blockId);
}

/** Every failure of decoding a record becomes a CORRUPT that names it; a read past a buffer's end is Node's RangeError. */
function explain(record: DecodedRecord, error: unknown): unknown {
  if (error instanceof RangeError) return corrupt(record, 'refers to bytes outside its page or itself', error);
  if (isCode(error, 'INVALID_LSN')) return corrupt(record, `it or its page holds an impossible LSN: ${error.message}`, error);
  if (isCode(error, 'CORRUPT') && !error.message.startsWith('WAL record'))
    return new LakebaseError('CORRUPT', `${describeRecord(record)}: ${error.message}`, { cause: error });
  return error;
}

/** Applies what `record` does to its block `blockId` to the 8 KiB `page`, in place, as Postgres's redo does, pd_lsn included.
 *  A page that is already at or past the record stays as it is. After an error the page's content is undefined: throw it away. */
export function redo(page: Buffer, record: DecodedRecord, blockId: number, major: number): void {
  if (page.length !== BLCKSZ) throw new LakebaseError('INVALID_ARGUMENT', `a page has ${BLCKSZ} bytes, not ${page.length}`);
  const block = record.blocks[blockId];
  if (blockId > record.maxBlockId || block === undefined || !block.inUse) throw corrupt(record, `has no block ${blockId}`);
  try {
    if (block.applyImage) {
      restoreImage(page, record, block);
      if (!isNewPage(page)) setPageLsn(page, record.endLsn);
      TABLE[record.rmid]?.afterImage?.(page, record, blockId);
      return;
    }
    const redoBlock = TABLE[record.rmid]?.redo;
    if (redoBlock === undefined) throw refuse(record);
    if (block.fork !== FORK_MAIN && !forkFits(record, blockId, block.fork))
      throw corrupt(record, `changes fork ${block.fork} in block ${blockId}`);
    if (!block.willInit) {
      if (pageLsn(page) >= record.endLsn) return;
      // Map pages may be missing at any time and are then made anew.
      if (isNewPage(page) && block.fork !== FORK_VM && block.fork !== FORK_FSM)
        throw corrupt(
          record,
          `changes block ${block.block} of ${block.spc}/${block.db}/${block.rel} fork ${block.fork}, which is not initialised`,
        );
    }
    redoBlock(page, record, blockId, major);
  } catch (error) {
    throw explain(record, error);
  }
}

/** Tells `sink` everything the record does, but for one thing: that `record.xid` was seen, which the caller has at hand and which would
 *  cost a call for nearly every record. Buffers and objects handed over are valid during the call only. */
export function emitEffects(record: DecodedRecord, major: number, sink: EffectSink): void {
  const manager = TABLE[record.rmid];
  if (manager === undefined) throw refuse(record);
  try {
    manager.effects(record, major, sink);
  } catch (error) {
    throw explain(record, error);
  }
}
