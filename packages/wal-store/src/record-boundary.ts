/** Finds record boundaries in a stream of WAL bytes without decoding records: reads only page headers, xl_tot_len, xl_prev, xl_rmid and xl_info.
 *  What cannot be WAL of this place is refused: a page that says it is another one, of another Postgres timeline or segment size; a record that
 *  does not name the one before it.
 *  `flushRecordLsn` is the end of the last complete record (8-aligned; for XLOG_SWITCH the start of the next segment), `lastRecordLsn`
 *  its start. Invariants: bytes are pushed in order and exactly once, in pieces of any size; the result does not depend on the pieces.
 *  Layout facts: xlogrecord.h, xlog_internal.h. Record starts and page headers are multiples of 8, so the padding after a record is
 *  accounted for by rounding its length up. */
import { LakebaseError } from '@lakebase/base';
import { ByteReader, ByteWriter, crc32c } from '@lakebase/bytes';
import {
  LONG_PAGE_HEADER_BYTES,
  type Lsn,
  WAL_SEGMENT_BYTES,
  XLOG_BLCKSZ,
  formatLsn,
  lsn,
  lsnHigh,
  lsnLow,
  pageHeaderBytes,
} from '@lakebase/ids';

/** SizeOfXLogRecord. */
const RECORD_HEADER_BYTES = 24;
/** XLogRecordMaxSize: 1020 MiB. */
const RECORD_BYTES_MAX = 1020 * 1024 * 1024;
const RM_XLOG = 0;
const XLOG_SWITCH = 0x40;
/** xlp_magic of every major we know begins with this byte. */
const PAGE_MAGIC_HIGH = 0xd1;
/** xlp_info bit: the header has the long form (XLP_LONG_HEADER). */
const LONG_HEADER = 0x0002;
/** xlp_info bit: the record that continued here was abandoned by a crash and is replaced (XLP_FIRST_IS_OVERWRITE_CONTRECORD). */
const OVERWRITE_CONTRECORD = 0x0008;
/** Bytes of {@link RecordBoundary.serialize}. */
export const BOUNDARY_STATE_BYTES: number = 8 * 5 + 4 * 2 + RECORD_HEADER_BYTES;

export class RecordBoundary {
  /** Next byte expected. */
  position: Lsn;
  flushRecordLsn: Lsn;
  lastRecordLsn: Lsn;
  /** Check xl_crc of records seen from their first byte: recovery scans do, the commit path does not. */
  verifyCrc = false;

  #recordStart: number;
  /** xl_tot_len; 0 until known. */
  #total = 0;
  #consumed = 0;
  /** End of the zeros that follow an XLOG_SWITCH; 0 outside of them. */
  #switchEnd = 0;
  #pageHeaderLeft = 0;
  /** A record was completed since this tracker began: what it began with is somebody's word. */
  #seen = false;
  readonly #page = Buffer.alloc(LONG_PAGE_HEADER_BYTES);
  #bodyCrc = 0;
  #crcUsable = false;
  readonly #header = Buffer.alloc(RECORD_HEADER_BYTES);

  constructor(position: Lsn, lastRecordLsn: Lsn) {
    this.position = position;
    this.flushRecordLsn = position;
    this.lastRecordLsn = lastRecordLsn;
    this.#recordStart = position;
  }

  /** Takes the bytes at `at`; throws CORRUPT when they cannot be WAL. After a throw only {@link restore} makes the tracker usable again. */
  push(bytes: Buffer, at: Lsn = this.position): void {
    if (at !== this.position) throw new LakebaseError('INTERNAL', `WAL pushed at ${formatLsn(at)}, expected ${formatLsn(this.position)}`);
    const end = bytes.length;
    let offset = 0;
    let position: number = this.position;
    while (offset < end) {
      if (this.#switchEnd !== 0) {
        const take = Math.min(end - offset, this.#switchEnd - position);
        offset += take;
        position += take;
        if (position === this.#switchEnd) this.#complete(position);
        continue;
      }
      if (this.#pageHeaderLeft === 0 && position % XLOG_BLCKSZ === 0) {
        this.#pageHeaderLeft = pageHeaderBytes(position);
      }
      if (this.#pageHeaderLeft > 0) {
        const take = Math.min(end - offset, this.#pageHeaderLeft);
        bytes.copy(this.#page, position % XLOG_BLCKSZ, offset, offset + take);
        offset += take;
        position += take;
        this.#pageHeaderLeft -= take;
        if (this.#pageHeaderLeft === 0) this.#pageSeen(position);
        continue;
      }
      const pageLeft = XLOG_BLCKSZ - (position % XLOG_BLCKSZ);
      let take = Math.min(end - offset, pageLeft);
      if (this.#consumed === 0) {
        this.#recordStart = position;
        this.#bodyCrc = 0;
        this.#crcUsable = true;
      }
      if (this.#consumed < RECORD_HEADER_BYTES) {
        take = Math.min(take, RECORD_HEADER_BYTES - this.#consumed);
        bytes.copy(this.#header, this.#consumed, offset, offset + take);
        this.#consumed += take;
        if (this.#total === 0 && this.#consumed >= 4) this.#total = this.#readLength();
        if (this.#consumed === RECORD_HEADER_BYTES && this.#seen) this.#checkPrevious();
      } else {
        const padded = Math.ceil(this.#total / 8) * 8;
        take = Math.min(take, padded - this.#consumed);
        if (this.verifyCrc && this.#crcUsable && this.#consumed < this.#total)
          this.#bodyCrc = crc32c(bytes.subarray(offset, offset + Math.min(take, this.#total - this.#consumed)), this.#bodyCrc);
        this.#consumed += take;
      }
      offset += take;
      position += take;
      if (this.#consumed >= RECORD_HEADER_BYTES && this.#consumed === Math.ceil(this.#total / 8) * 8) this.#recordSeen(position);
    }
    this.position = position as Lsn;
  }

  /** The header that ends at `end` is whole. */
  #pageSeen(end: number): void {
    const page = this.#page;
    const start = lsn(end - (end % XLOG_BLCKSZ));
    const info = page.readUInt16LE(2);
    const isLong = start % WAL_SEGMENT_BYTES === 0;
    const bad =
      page[1] !== PAGE_MAGIC_HIGH
        ? 'it does not begin as one'
        : page.readUInt32LE(4) !== 1
          ? `it is of the Postgres timeline ${page.readUInt32LE(4)}`
          : page.readUInt32LE(8) !== lsnLow(start) || page.readUInt32LE(12) !== lsnHigh(start)
            ? 'it says that it is another page'
            : ((info & LONG_HEADER) !== 0) !== isLong
              ? 'its header has the wrong form'
              : isLong && (page.readUInt32LE(32) !== WAL_SEGMENT_BYTES || page.readUInt32LE(36) !== XLOG_BLCKSZ)
                ? 'its segments or pages have another size'
                : undefined;
    if (bad !== undefined) throw new LakebaseError('CORRUPT', `no WAL page at ${formatLsn(start)}: ${bad}`);
    if ((info & OVERWRITE_CONTRECORD) === 0) return;
    this.#total = 0;
    this.#consumed = 0;
  }

  #checkPrevious(): void {
    const previous = this.lastRecordLsn;
    if (this.#header.readUInt32LE(8) === lsnLow(previous) && this.#header.readUInt32LE(12) === lsnHigh(previous)) return;
    const at = formatLsn(this.#recordStart as Lsn);
    throw new LakebaseError('CORRUPT', `no WAL record at ${at}: it does not follow the one at ${formatLsn(previous)}`);
  }

  #readLength(): number {
    const total = this.#header.readUInt32LE(0);
    if (total < RECORD_HEADER_BYTES || total > RECORD_BYTES_MAX)
      throw new LakebaseError('CORRUPT', `no WAL record at ${formatLsn(this.#recordStart as Lsn)}: its length would be ${total}`);
    return total;
  }

  #recordSeen(position: number): void {
    if (this.verifyCrc && this.#crcUsable && crc32c(this.#header.subarray(0, 20), this.#bodyCrc) !== this.#header.readUInt32LE(20))
      throw new LakebaseError('CORRUPT', `WAL record at ${formatLsn(this.#recordStart as Lsn)} has a wrong checksum`);
    const isSwitch = this.#header[17] === RM_XLOG && ((this.#header[16] as number) & 0xf0) === XLOG_SWITCH;
    if (isSwitch && position % WAL_SEGMENT_BYTES !== 0)
      this.#switchEnd = (Math.floor(position / WAL_SEGMENT_BYTES) + 1) * WAL_SEGMENT_BYTES;
    else this.#complete(position);
  }

  #complete(position: number): void {
    this.lastRecordLsn = this.#recordStart as Lsn;
    this.flushRecordLsn = position as Lsn;
    this.#seen = true;
    this.#total = 0;
    this.#consumed = 0;
    this.#switchEnd = 0;
  }

  /** State at `position`, which must not be inside a page header (segment starts and record ends never are). */
  serialize(): Buffer {
    return new ByteWriter(BOUNDARY_STATE_BYTES)
      .u64be(this.position)
      .u64be(this.flushRecordLsn)
      .u64be(this.lastRecordLsn)
      .u64be(this.#recordStart)
      .u64be(this.#switchEnd)
      .u32be(this.#total)
      .u32be(this.#consumed)
      .bytes(this.#header)
      .finish();
  }

  static deserialize(bytes: Buffer): RecordBoundary {
    const r = new ByteReader(bytes);
    const position = r.lsnBe();
    const flushRecordLsn = r.lsnBe();
    const b = new RecordBoundary(position, r.lsnBe());
    b.flushRecordLsn = flushRecordLsn;
    b.#recordStart = r.u64be();
    b.#switchEnd = r.u64be();
    b.#total = r.u32be();
    b.#consumed = r.u32be();
    r.bytes(RECORD_HEADER_BYTES).copy(b.#header);
    return b;
  }

  /** An independent copy, for going back when what follows is refused. */
  clone(): RecordBoundary {
    const b = new RecordBoundary(lsn(this.position), this.lastRecordLsn);
    b.restore(this);
    return b;
  }

  restore(from: RecordBoundary): void {
    this.position = from.position;
    this.flushRecordLsn = from.flushRecordLsn;
    this.lastRecordLsn = from.lastRecordLsn;
    this.verifyCrc = from.verifyCrc;
    this.#recordStart = from.#recordStart;
    this.#total = from.#total;
    this.#consumed = from.#consumed;
    this.#switchEnd = from.#switchEnd;
    this.#pageHeaderLeft = from.#pageHeaderLeft;
    this.#seen = from.#seen;
    from.#page.copy(this.#page);
    this.#bodyCrc = from.#bodyCrc;
    this.#crcUsable = from.#crcUsable;
    from.#header.copy(this.#header);
  }
}
