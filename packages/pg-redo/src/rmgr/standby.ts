/** Records for standbys (standby.c) and replication origins (origin.c). */
import { lsnFromHalves } from '@lakebase/ids';
import type { DecodedRecord } from '@lakebase/pg-format';
import type { EffectSink } from '../effects.ts';
import { corrupt, mainData } from '../record-error.ts';
import { previousXid } from './xlog.ts';

const XLOG_RUNNING_XACTS = 0x10;

/** Locks and invalidations concern the standby's memory only. */
export function standbyEffects(record: DecodedRecord, _major: number, sink: EffectSink): void {
  if ((record.info & 0xf0) !== XLOG_RUNNING_XACTS) return;
  const at = mainData(record, 24);
  const { buf } = record;
  sink.counters({ seenXid: previousXid(buf.readUInt32LE(at + 12)), oldestActiveXid: buf.readUInt32LE(at + 16) });
}

const XLOG_REPLORIGIN_SET = 0x00;
const XLOG_REPLORIGIN_DROP = 0x10;

export function originEffects(record: DecodedRecord, _major: number, sink: EffectSink): void {
  const { buf } = record;
  switch (record.info & 0xf0) {
    case XLOG_REPLORIGIN_SET: {
      const at = mainData(record, 11);
      sink.originAdvance(buf.readUInt16LE(at + 8), lsnFromHalves(buf.readUInt32LE(at + 4), buf.readUInt32LE(at)));
      break;
    }
    case XLOG_REPLORIGIN_DROP:
      sink.originDrop(buf.readUInt16LE(mainData(record, 2)));
      break;
    default:
      throw corrupt(record, 'no such operation');
  }
}
