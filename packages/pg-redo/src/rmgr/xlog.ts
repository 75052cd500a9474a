/** The XLOG resource manager (xlog.c xlog_redo): counters, parameters; its only blocks are full-page images. */
import {
  CHECKPOINT_BYTES,
  type DecodedRecord,
  decodeCheckPoint,
  XLOG_CHECKPOINT_ONLINE,
  XLOG_CHECKPOINT_SHUTDOWN,
  XLOG_FPI,
  XLOG_FPI_FOR_HINT,
  XLOG_NEXTOID,
  XLOG_PARAMETER_CHANGE,
} from '@lakebase/pg-format';
import type { EffectSink } from '../effects.ts';
import { corrupt, mainData } from '../record-error.ts';

/** Full-page images are restored before any redo function is asked. */
export function xlogRedo(_page: Buffer, record: DecodedRecord, blockId: number, _major: number): void {
  throw corrupt(record, `block ${blockId} has no full-page image`);
}

export function xlogEffects(record: DecodedRecord, _major: number, sink: EffectSink): void {
  const { buf } = record;
  switch (record.info & 0xf0) {
    case XLOG_FPI:
    case XLOG_FPI_FOR_HINT:
      for (let i = 0; i <= record.maxBlockId; i++) {
        const block = record.blocks[i];
        if (block?.inUse === true && block.applyImage) sink.block(i);
        else if ((record.info & 0xf0) === XLOG_FPI) throw corrupt(record, `block ${i} has no full-page image`);
      }
      break;
    case XLOG_NEXTOID:
      sink.counters({ nextOid: buf.readUInt32LE(mainData(record, 4)) });
      break;
    case XLOG_CHECKPOINT_SHUTDOWN: {
      const cp = decodeCheckPoint(buf, mainData(record, CHECKPOINT_BYTES));
      sink.counters({
        nextFullXid: cp.nextFullXid,
        nextOid: cp.nextOid,
        nextMulti: cp.nextMulti,
        nextMultiOffset: cp.nextMultiOffset,
        oldestXid: cp.oldestXid,
        oldestXidDb: cp.oldestXidDb,
        oldestMulti: cp.oldestMulti,
        oldestMultiDb: cp.oldestMultiDb,
        oldestCommitTsXid: cp.oldestCommitTsXid,
        newestCommitTsXid: cp.newestCommitTsXid,
        oldestActiveXid: cp.oldestActiveXid,
        time: cp.time,
      });
      break;
    }
    case XLOG_CHECKPOINT_ONLINE: {
      // Its counters were read before records that already lie behind us: minimums. nextOid comes from NEXTOID records alone.
      const cp = decodeCheckPoint(buf, mainData(record, CHECKPOINT_BYTES));
      sink.counters({
        seenXid: previousXid(cp.nextFullXid % 0x1_0000_0000),
        nextMulti: cp.nextMulti,
        nextMultiOffset: cp.nextMultiOffset,
        oldestXid: cp.oldestXid,
        oldestXidDb: cp.oldestXidDb,
        oldestMulti: cp.oldestMulti,
        oldestMultiDb: cp.oldestMultiDb,
        oldestActiveXid: cp.oldestActiveXid,
        time: cp.time,
      });
      break;
    }
    case XLOG_PARAMETER_CHANGE: {
      const at = mainData(record, 26);
      const trackCommitTimestamp = buf[at + 25] !== 0;
      sink.parameters({
        maxConnections: buf.readInt32LE(at),
        maxWorkerProcesses: buf.readInt32LE(at + 4),
        maxWalSenders: buf.readInt32LE(at + 8),
        maxPreparedXacts: buf.readInt32LE(at + 12),
        maxLocksPerXact: buf.readInt32LE(at + 16),
        walLevel: buf.readInt32LE(at + 20),
        walLogHints: buf[at + 24] !== 0,
        trackCommitTimestamp,
      });
      if (!trackCommitTimestamp) {
        // The pages may stay: with these at zero nothing on them is looked up, and Postgres removes the files when it starts.
        sink.counters({ oldestCommitTsXid: 0, newestCommitTsXid: 0 });
      }
      break;
    }
    default:
      break; // NOOP, SWITCH, BACKUP_END, RESTORE_POINT, FPW_CHANGE, END_OF_RECOVERY, OVERWRITE_CONTRECORD, CHECKPOINT_REDO
  }
}

/** TransactionIdRetreat: the xid before, skipping the permanent ones. */
export function previousXid(xid: number): number {
  const before = (xid - 1) >>> 0;
  return before < 3 ? 0xffff_ffff : before;
}
