/** Transactions (xact.c xact_redo, xactdesc.c Parse*Record): status, commit timestamps, dropped relations, prepared transactions, origins.
 *  Invariant: every list is checked against the record's length before it is walked. */
import { type Lsn, lsnFromHalves } from '@lakebase/ids';
import { type DecodedRecord, xidPrecedes } from '@lakebase/pg-format';
import { type EffectSink, SLRU_COMMIT_TS, SLRU_XACT, type SlruKind } from '../effects.ts';
import { corrupt, mainData } from '../record-error.ts';
import {
  CLOG_XACTS_PER_PAGE,
  COMMIT_TS_XACTS_PER_PAGE,
  commitTsDelta,
  DELTA_XACT_STATUS,
  TRANSACTION_STATUS_ABORTED,
  TRANSACTION_STATUS_COMMITTED,
  xactStatusDelta,
} from '../side-delta.ts';

const XLOG_XACT_OPMASK = 0x70;
const XLOG_XACT_COMMIT = 0x00;
const XLOG_XACT_PREPARE = 0x10;
const XLOG_XACT_ABORT = 0x20;
const XLOG_XACT_COMMIT_PREPARED = 0x30;
const XLOG_XACT_ABORT_PREPARED = 0x40;
const XLOG_XACT_ASSIGNMENT = 0x50;
const XLOG_XACT_INVALIDATIONS = 0x60;
const XLOG_XACT_HAS_INFO = 0x80;

const XINFO_HAS_DBINFO = 1 << 0;
const XINFO_HAS_SUBXACTS = 1 << 1;
const XINFO_HAS_RELFILELOCATORS = 1 << 2;
const XINFO_HAS_INVALS = 1 << 3;
const XINFO_HAS_TWOPHASE = 1 << 4;
const XINFO_HAS_ORIGIN = 1 << 5;
const XINFO_HAS_GID = 1 << 7;
const XINFO_HAS_DROPPED_STATS = 1 << 8;

/** sizeof(SharedInvalidationMessage). */
const INVAL_BYTES = 16;
/** xl_xact_prepare up to and with origin_timestamp, MAXALIGNed. */
const PREPARE_BYTES = 72;

export function xactEffects(record: DecodedRecord, major: number, sink: EffectSink): void {
  switch (record.info & XLOG_XACT_OPMASK) {
    case XLOG_XACT_COMMIT:
    case XLOG_XACT_COMMIT_PREPARED:
      finish(record, major, sink, true);
      break;
    case XLOG_XACT_ABORT:
    case XLOG_XACT_ABORT_PREPARED:
      finish(record, major, sink, false);
      break;
    case XLOG_XACT_PREPARE:
      prepare(record, sink);
      break;
    case XLOG_XACT_ASSIGNMENT:
    case XLOG_XACT_INVALIDATIONS:
      break;
    default:
      throw corrupt(record, 'no such operation');
  }
}

/** Status delta of one transaction, used again and again: valid during the sink's call only. */
const oneStatus = Buffer.alloc(4);
oneStatus[0] = DELTA_XACT_STATUS;

/** A commit without extra information is what most transactions end with: no list, no closure, no new buffer. */
function finishPlain(record: DecodedRecord, sink: EffectSink, status: number): void {
  const { xid } = record;
  if (xid < 3) throw corrupt(record, `no transaction ${xid} can end`);
  const index = xid & (CLOG_XACTS_PER_PAGE - 1);
  oneStatus[1] = status;
  oneStatus[2] = index & 0xff;
  oneStatus[3] = index >>> 8;
  sink.slruDelta(SLRU_XACT, (xid - index) / CLOG_XACTS_PER_PAGE, oneStatus);
}

/** Commit or abort, one-phase or of a prepared transaction. */
function finish(record: DecodedRecord, major: number, sink: EffectSink, committed: boolean): void {
  const { buf } = record;
  const start = mainData(record, 8);
  if ((record.info & (XLOG_XACT_HAS_INFO | XLOG_XACT_OPMASK)) === XLOG_XACT_COMMIT && sink.commitTimestamps === false)
    return finishPlain(record, sink, TRANSACTION_STATUS_COMMITTED);
  const end = start + record.mainLength;
  let at = start + 8;
  const take = (n: number): number => {
    if (n > end - at) throw corrupt(record, `is cut: ${n} bytes are needed, ${end - at} are left`);
    at += n;
    return at - n;
  };
  /** Skips a list with a count in front; returns where its items start. */
  const takeList = (itemBytes: number): { count: number; at: number } => {
    const count = buf.readInt32LE(take(4));
    if (count < 0) throw corrupt(record, `a list of ${count} items`);
    return { count, at: take(count * itemBytes) };
  };

  const xinfo = (record.info & XLOG_XACT_HAS_INFO) !== 0 ? buf.readUInt32LE(take(4)) : 0;
  if ((xinfo & XINFO_HAS_DBINFO) !== 0) take(8);
  const subxacts = (xinfo & XINFO_HAS_SUBXACTS) !== 0 ? takeList(4) : undefined;
  const rels = (xinfo & XINFO_HAS_RELFILELOCATORS) !== 0 ? takeList(12) : undefined;
  if ((xinfo & XINFO_HAS_DROPPED_STATS) !== 0) takeList(major >= 18 ? 16 : 12);
  if (committed && (xinfo & XINFO_HAS_INVALS) !== 0) takeList(INVAL_BYTES);
  let xid = record.xid;
  const op = record.info & XLOG_XACT_OPMASK;
  const prepared = op === XLOG_XACT_COMMIT_PREPARED || op === XLOG_XACT_ABORT_PREPARED;
  if ((xinfo & XINFO_HAS_TWOPHASE) !== 0) {
    const twophaseXid = buf.readUInt32LE(take(4));
    if (prepared) xid = twophaseXid;
    if ((xinfo & XINFO_HAS_GID) !== 0) {
      const zero = buf.indexOf(0, at);
      if (zero < 0 || zero >= end) throw corrupt(record, 'the transaction name does not end');
      at = zero + 1;
    }
  } else if (prepared) throw corrupt(record, 'a prepared transaction without its xid');
  let originAt = -1;
  if ((xinfo & XINFO_HAS_ORIGIN) !== 0) originAt = take(16);
  if (xid < 3) throw corrupt(record, `no transaction ${xid} can end`);

  const xids = [xid];
  let maxXid = xid;
  if (subxacts !== undefined)
    for (let i = 0; i < subxacts.count; i++) {
      const sub = buf.readUInt32LE(subxacts.at + i * 4);
      xids.push(sub);
      if (xidPrecedes(maxXid, sub)) maxXid = sub;
    }
  emitByPage(SLRU_XACT, CLOG_XACTS_PER_PAGE, xids, sink, (group) =>
    xactStatusDelta(committed ? TRANSACTION_STATUS_COMMITTED : TRANSACTION_STATUS_ABORTED, group),
  );
  if (committed && sink.commitTimestamps !== false) {
    const time = buf.subarray(originAt >= 0 ? originAt + 8 : start, (originAt >= 0 ? originAt + 8 : start) + 8);
    emitByPage(SLRU_COMMIT_TS, COMMIT_TS_XACTS_PER_PAGE, xids, sink, (group) => commitTsDelta(time, record.originId, group));
    sink.counters({ seenXid: maxXid, newestCommitTsXid: xids[xids.length - 1] as number });
  } else if (maxXid !== record.xid) sink.counters({ seenXid: maxXid });
  if (originAt >= 0) sink.originAdvance(record.originId, lsnAt(buf, originAt));
  if (rels !== undefined)
    for (let i = 0; i < rels.count; i++) {
      const rel = rels.at + i * 12;
      sink.relDrop(buf.readUInt32LE(rel), buf.readUInt32LE(rel + 4), buf.readUInt32LE(rel + 8));
    }
  if (prepared) sink.twophaseDelete(xid);
}

/** One delta per SLRU page that `xids` lie on. Almost always there is one page, and no list is built. */
function emitByPage(
  kind: SlruKind,
  perPage: number,
  xids: readonly number[],
  sink: EffectSink,
  encode: (group: readonly number[]) => Buffer,
): void {
  const first = Math.floor((xids[0] as number) / perPage);
  if (xids.every((xid) => Math.floor(xid / perPage) === first)) return sink.slruDelta(kind, first, encode(xids));
  const groups = new Map<number, number[]>();
  for (const xid of xids) {
    const page = Math.floor(xid / perPage);
    const group = groups.get(page);
    if (group === undefined) groups.set(page, [xid]);
    else group.push(xid);
  }
  for (const [page, group] of groups) sink.slruDelta(kind, page, encode(group));
}

/** The main data is the content of the pg_twophase file, but for its CRC. */
function prepare(record: DecodedRecord, sink: EffectSink): void {
  const { buf } = record;
  const at = mainData(record, PREPARE_BYTES);
  const xid = buf.readUInt32LE(at + 8);
  if (xid < 3) throw corrupt(record, `no transaction ${xid} can be prepared`);
  const subxacts = buf.readInt32LE(at + 28);
  const gidBytes = (buf.readUInt16LE(at + 54) + 7) & ~7;
  if (subxacts < 0 || PREPARE_BYTES + gidBytes + subxacts * 4 > record.mainLength)
    throw corrupt(record, `${subxacts} subtransactions do not fit`);
  let maxXid = xid;
  for (let i = 0; i < subxacts; i++) {
    const sub = buf.readUInt32LE(at + PREPARE_BYTES + gidBytes + i * 4);
    if (xidPrecedes(maxXid, sub)) maxXid = sub;
  }
  sink.counters({ seenXid: maxXid });
  sink.twophasePut(xid, buf.subarray(at, at + record.mainLength));
  if (record.originId !== 0) sink.originAdvance(record.originId, lsnAt(buf, at + 56));
}

const lsnAt = (buf: Buffer, at: number): Lsn => lsnFromHalves(buf.readUInt32LE(at + 4), buf.readUInt32LE(at));
