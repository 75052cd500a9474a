/** Records about whole SLRU pages: CLOG (clog.c), commit timestamps (commit_ts.c), multixacts (multixact.c). */
import { xidPrecedes, type DecodedRecord } from '@lakebase/pg-format';
import { type EffectSink, SLRU_COMMIT_TS, SLRU_MULTIXACT_MEMBERS, SLRU_MULTIXACT_OFFSETS, SLRU_XACT } from '../effects.ts';
import { corrupt, mainData } from '../record-error.ts';
import {
  MULTIXACT_MEMBERS_PER_PAGE,
  MULTIXACT_OFFSETS_PER_PAGE,
  type MultixactMember,
  multixactMembersDelta,
  multixactOffsetsDelta,
} from '../side-delta.ts';

/** Page numbers are int64 since 17, int before. */
const pageNumberBytes = (major: number): number => (major >= 17 ? 8 : 4);

function pageNumber(record: DecodedRecord, major: number): number {
  const at = mainData(record, pageNumberBytes(major));
  if (major >= 17 && record.buf.readUInt32LE(at + 4) !== 0) throw corrupt(record, 'page number is above 2^32');
  return record.buf.readUInt32LE(at);
}

const ZEROPAGE = 0x00;
const TRUNCATE = 0x10;

export function clogEffects(record: DecodedRecord, major: number, sink: EffectSink): void {
  switch (record.info & 0xf0) {
    case ZEROPAGE:
      sink.slruZero(SLRU_XACT, pageNumber(record, major));
      break;
    case TRUNCATE: {
      const at = mainData(record, pageNumberBytes(major) + 8) + pageNumberBytes(major);
      sink.slruTruncate(SLRU_XACT, pageNumber(record, major));
      sink.counters({ oldestXid: record.buf.readUInt32LE(at), oldestXidDb: record.buf.readUInt32LE(at + 4) });
      break;
    }
    default:
      throw corrupt(record, 'no such operation');
  }
}

export function commitTsEffects(record: DecodedRecord, major: number, sink: EffectSink): void {
  switch (record.info & 0xf0) {
    case ZEROPAGE:
      sink.slruZero(SLRU_COMMIT_TS, pageNumber(record, major));
      break;
    case TRUNCATE: {
      const at = mainData(record, pageNumberBytes(major) + 4) + pageNumberBytes(major);
      sink.slruTruncate(SLRU_COMMIT_TS, pageNumber(record, major));
      sink.counters({ oldestCommitTsXid: record.buf.readUInt32LE(at) });
      break;
    }
    default:
      throw corrupt(record, 'no such operation');
  }
}

const XLOG_MULTIXACT_ZERO_OFF_PAGE = 0x00;
const XLOG_MULTIXACT_ZERO_MEM_PAGE = 0x10;
const XLOG_MULTIXACT_CREATE_ID = 0x20;
const XLOG_MULTIXACT_TRUNCATE_ID = 0x30;
/** FirstMultiXactId. */
const FIRST_MULTIXACT = 1;
const UINT32 = 0x1_0000_0000;

export function multixactEffects(record: DecodedRecord, major: number, sink: EffectSink): void {
  const { buf } = record;
  switch (record.info & 0xf0) {
    case XLOG_MULTIXACT_ZERO_OFF_PAGE:
      sink.slruZero(SLRU_MULTIXACT_OFFSETS, pageNumber(record, major));
      break;
    case XLOG_MULTIXACT_ZERO_MEM_PAGE:
      sink.slruZero(SLRU_MULTIXACT_MEMBERS, pageNumber(record, major));
      break;
    case XLOG_MULTIXACT_CREATE_ID:
      createMultixact(record, sink);
      break;
    case XLOG_MULTIXACT_TRUNCATE_ID: {
      const at = mainData(record, 20);
      const oldest = buf.readUInt32LE(at + 8);
      const oldestMember = buf.readUInt32LE(at + 12);
      const firstMember = buf.readUInt32LE(at + 16);
      sink.counters({ oldestMulti: oldest, oldestMultiDb: buf.readUInt32LE(at) });
      sink.slruTruncate(
        SLRU_MULTIXACT_MEMBERS,
        Math.floor(firstMember / MULTIXACT_MEMBERS_PER_PAGE),
        Math.floor(oldestMember / MULTIXACT_MEMBERS_PER_PAGE),
      );
      // One multixact back, as PerformOffsetsTruncation: the page of `oldest` itself may not exist yet.
      const before = oldest <= FIRST_MULTIXACT ? UINT32 - 1 : oldest - 1;
      sink.slruTruncate(SLRU_MULTIXACT_OFFSETS, Math.floor(before / MULTIXACT_OFFSETS_PER_PAGE));
      break;
    }
    default:
      throw corrupt(record, 'no such operation');
  }
}

/** RecordNewMultiXact: this multixact's offset, the next one's, and the members. */
function createMultixact(record: DecodedRecord, sink: EffectSink): void {
  const { buf } = record;
  const at = mainData(record, 12);
  const multi = buf.readUInt32LE(at);
  const offset = buf.readUInt32LE(at + 4);
  const count = buf.readInt32LE(at + 8);
  if (count < 0 || count > (record.mainLength - 12) / 8) throw corrupt(record, `${count} members in ${record.mainLength} bytes`);

  const next = (multi + 1) % UINT32 < FIRST_MULTIXACT ? FIRST_MULTIXACT : multi + 1;
  // Offset 0 means "not set", so it is skipped when the counter wraps around.
  const nextOffset = (offset + count) % UINT32 === 0 ? 1 : (offset + count) % UINT32;
  const page = Math.floor(multi / MULTIXACT_OFFSETS_PER_PAGE);
  const nextPage = Math.floor(next / MULTIXACT_OFFSETS_PER_PAGE);
  if (page === nextPage) {
    sink.slruDelta(
      SLRU_MULTIXACT_OFFSETS,
      page,
      multixactOffsetsDelta([
        [multi, offset],
        [next, nextOffset],
      ]),
    );
  } else {
    sink.slruDelta(SLRU_MULTIXACT_OFFSETS, page, multixactOffsetsDelta([[multi, offset]]));
    sink.slruDelta(SLRU_MULTIXACT_OFFSETS, nextPage, multixactOffsetsDelta([[next, nextOffset]]));
  }

  let onPage: MultixactMember[] = [];
  let memberPage = -1;
  let maxXid = record.xid;
  for (let i = 0; i < count; i++) {
    const member = {
      offset: (offset + i) % UINT32,
      xid: buf.readUInt32LE(at + 12 + i * 8),
      status: buf.readUInt32LE(at + 16 + i * 8),
    };
    if (member.status > 5) throw corrupt(record, `no member status ${member.status}`);
    if (maxXid === 0 || xidPrecedes(maxXid, member.xid)) maxXid = member.xid;
    const p = Math.floor(member.offset / MULTIXACT_MEMBERS_PER_PAGE);
    if (p !== memberPage && onPage.length > 0) {
      sink.slruDelta(SLRU_MULTIXACT_MEMBERS, memberPage, multixactMembersDelta(onPage));
      onPage = [];
    }
    memberPage = p;
    onPage.push(member);
  }
  if (onPage.length > 0) sink.slruDelta(SLRU_MULTIXACT_MEMBERS, memberPage, multixactMembersDelta(onPage));
  sink.counters({ nextMulti: next, nextMultiOffset: nextOffset, ...(maxXid === 0 ? {} : { seenXid: maxXid }) });
}
