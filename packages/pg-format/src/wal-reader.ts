/** WAL bytes in, records out (xlogreader.c as a push parser).
 *  Feed contiguous bytes from `startLsn` on in chunks of any size; `next()` gives records until it needs more bytes.
 *  Invariants: (1) a record that lies within one page and one chunk is decoded in place, without allocation or copy; (2) the result of
 *  `next()` and what it points to are valid until the following `next()` or `push()`, and only while the pushed chunk is not changed;
 *  (3) every page header, length, CRC and prev-link is checked before a record is given out; (4) after an error the decoder stays
 *  failed: it throws the same error again. `endLsn` then still names the end of the last good record, which is how the end of valid WAL is found. */
import { LakebaseError } from '@lakebase/base';
import {
  formatLsn,
  INVALID_LSN,
  LONG_PAGE_HEADER_BYTES,
  type Lsn,
  SHORT_PAGE_HEADER_BYTES,
  WAL_SEGMENT_BYTES,
  XLOG_BLCKSZ,
} from '@lakebase/ids';
import {
  pageMagic,
  RECORD_HEADER_BYTES,
  RM_XLOG_ID,
  XLOG_SWITCH,
  XLP_ALL_FLAGS,
  XLP_FIRST_IS_CONTRECORD,
  XLP_FIRST_IS_OVERWRITE_CONTRECORD,
  XLP_LONG_HEADER,
  XLR_RMGR_INFO_MASK,
} from './constants.ts';
import { checkedRecordLength, corruptRecord, decodeRecord, newDecodedRecord, recordCrcMatches, recordPrev } from './decode.ts';
import type { DecodedRecord } from './record.ts';
import { recordCrcByView } from './record-crc.ts';

export interface WalDecoderOptions {
  /** Start of a record, or a page or segment boundary. When a continued record lies at the boundary, reading starts after it. */
  readonly startLsn: Lsn;
  readonly major: number;
  /** Checked against the long page header of every segment. */
  readonly systemId?: bigint;
  /** Start of the record before startLsn, when known: the first prev-link is then checked exactly. */
  readonly prevLsn?: Lsn;
}

const PAGE_MASK = XLOG_BLCKSZ - 1;
const EMPTY = Buffer.alloc(0);
/** Assembly starts with two pages and grows only as bytes arrive, so a garbage length allocates nothing. */
const ASSEMBLY_BYTES = 2 * XLOG_BLCKSZ;
/** A larger assembly buffer is let go once its record is done. */
const ASSEMBLY_KEEP_BYTES = 1 << 20;

export class WalDecoder {
  readonly #magic: number;
  readonly #systemId: bigint | undefined;
  readonly #record: DecodedRecord = newDecodedRecord();
  #chunk: Buffer = EMPTY;
  #view: DataView = new DataView(EMPTY.buffer, 0, 0);
  readonly #queue: Buffer[] = [];
  /** LSN of #chunk[0]. */
  #base: number;
  /** #base modulo the page size. */
  #basePageOffset: number;
  /** Next byte to read; may lie beyond the chunk when bytes are to be skipped. */
  #pos = 0;
  /** A page header that arrives in pieces, and how much of it is here. */
  readonly #header = Buffer.alloc(LONG_PAGE_HEADER_BYTES);
  #headerGot = 0;
  /** True from the first page header or record on: only before may a continued record be skipped. */
  #started = false;
  /** Bytes of a record continued from before startLsn that are still to be skipped. */
  #skip = 0;
  /** A record that lies on several pages or chunks; #got < 0 when there is none. */
  #assembly: Buffer = EMPTY;
  #got = -1;
  #total = 0;
  #recordLsn = 0;
  #prev: number;
  #endLsn: Lsn;
  #failure: unknown;

  /** Zeroes what it holds of records; it is not used afterwards. */
  wipe(): void {
    this.#assembly.fill(0);
    this.#queue.length = 0;
  }

  constructor(options: WalDecoderOptions) {
    if (options.startLsn % 8 !== 0)
      throw new LakebaseError('INVALID_ARGUMENT', `WAL cannot be read from ${formatLsn(options.startLsn)}: not a multiple of 8`);
    this.#magic = pageMagic(options.major);
    this.#systemId = options.systemId;
    this.#base = options.startLsn;
    this.#basePageOffset = options.startLsn % XLOG_BLCKSZ;
    this.#endLsn = options.startLsn;
    this.#prev = options.prevLsn ?? -1;
  }

  /** LSN after the last record given out (its EndRecPtr); startLsn before the first. */
  get endLsn(): Lsn {
    return this.#endLsn;
  }

  /** Start of the last record given out, or the `prevLsn` given; INVALID_LSN when unknown. */
  get lastRecordLsn(): Lsn {
    return (this.#prev < 0 ? INVALID_LSN : this.#prev) as Lsn;
  }

  /** LSN after the last byte pushed. */
  get receivedLsn(): Lsn {
    let lsn = this.#base + this.#chunk.length;
    for (const chunk of this.#queue) lsn += chunk.length;
    return lsn as Lsn;
  }

  push(chunk: Buffer): void {
    if (chunk.length > 0) this.#queue.push(chunk);
  }

  /** The next record, or undefined when more bytes are needed. */
  next(): DecodedRecord | undefined {
    if (this.#failure !== undefined) throw this.#failure;
    try {
      return this.#next();
    } catch (error) {
      this.#failure = error;
      throw error;
    }
  }

  #next(): DecodedRecord | undefined {
    for (;;) {
      while (this.#pos >= this.#chunk.length) if (!this.#advance()) return undefined;
      const chunk = this.#chunk;
      const pos = this.#pos;
      const inPage = (this.#basePageOffset + pos) & PAGE_MASK;
      if (inPage === 0 || this.#headerGot > 0) {
        this.#readPageHeader();
        continue;
      }
      if (this.#skip > 0) {
        const n = Math.min(this.#skip, chunk.length - pos, XLOG_BLCKSZ - inPage);
        this.#skip -= n;
        this.#pos = pos + n;
        if (this.#skip === 0) this.#alignPosition();
        continue;
      }
      if (this.#got < 0) {
        const available = chunk.length - pos;
        const left = XLOG_BLCKSZ - inPage;
        if (available >= RECORD_HEADER_BYTES && left >= RECORD_HEADER_BYTES) {
          const total = checkedRecordLength(chunk, pos, this.#base + pos);
          if (total <= available && total <= left) {
            this.#pos = pos + ((total + 7) & ~7);
            return this.#finish(chunk, pos, total, this.#base + pos);
          }
        }
        this.#got = 0;
        this.#total = 0;
        this.#recordLsn = this.#base + pos;
        if (this.#assembly.length === 0 || this.#assembly.length > ASSEMBLY_KEEP_BYTES)
          this.#assembly = Buffer.allocUnsafeSlow(ASSEMBLY_BYTES);
      }
      if (this.#collect(XLOG_BLCKSZ - inPage)) {
        this.#got = -1;
        this.#alignPosition();
        return this.#finish(this.#assembly, 0, this.#total, this.#recordLsn);
      }
    }
  }

  /** Moves on to the next pushed chunk. */
  #advance(): boolean {
    const chunk = this.#queue.shift();
    if (chunk === undefined) return false;
    this.#base += this.#chunk.length;
    this.#pos -= this.#chunk.length;
    this.#basePageOffset = this.#base % XLOG_BLCKSZ;
    this.#chunk = chunk;
    this.#view = new DataView(chunk.buffer, chunk.byteOffset, chunk.length);
    return true;
  }

  #alignPosition(): void {
    this.#pos += -(this.#basePageOffset + this.#pos) & 7;
  }

  /** Takes what the chunk has of the page header; once it is whole, checks it and what it says about the record that crosses it. */
  #readPageHeader(): void {
    const pageLsn = this.#base + this.#pos - this.#headerGot;
    const need = pageLsn % WAL_SEGMENT_BYTES === 0 ? LONG_PAGE_HEADER_BYTES : SHORT_PAGE_HEADER_BYTES;
    const n = Math.min(need - this.#headerGot, this.#chunk.length - this.#pos);
    this.#chunk.copy(this.#header, this.#headerGot, this.#pos, this.#pos + n);
    this.#headerGot += n;
    this.#pos += n;
    if (this.#headerGot < need) return;
    this.#headerGot = 0;
    this.#checkPageHeader(pageLsn);

    const info = this.#header.readUInt16LE(2);
    const continued = (info & XLP_FIRST_IS_CONTRECORD) !== 0;
    const overwritten = (info & XLP_FIRST_IS_OVERWRITE_CONTRECORD) !== 0;
    const remaining = this.#header.readUInt32LE(16);
    if (this.#got >= 0) {
      // A record whose rest was lost in a crash is dropped; the page starts with XLOG_OVERWRITE_CONTRECORD instead.
      if (overwritten) this.#got = -1;
      else if (!continued) throw corruptRecord(this.#recordLsn, `does not continue on the page at ${formatLsn(pageLsn as Lsn)}`);
      else if (remaining === 0 || remaining !== this.#total - this.#got)
        throw corruptRecord(this.#recordLsn, `${this.#total - this.#got} bytes are missing, the page header says ${remaining}`);
    } else if (this.#skip > 0) {
      if (overwritten) this.#skip = 0;
      else if (!continued || remaining !== this.#skip)
        throw corruptPage(pageLsn, `continues ${remaining} bytes where ${this.#skip} are expected`);
    } else if (continued) {
      if (this.#started) throw corruptPage(pageLsn, 'continues a record that does not exist');
      this.#skip = remaining;
    }
    this.#started = true;
  }

  #checkPageHeader(pageLsn: number): void {
    const h = this.#header;
    const magic = h.readUInt16LE(0);
    if (magic !== this.#magic)
      throw corruptPage(
        pageLsn,
        magic === 0
          ? 'is zero: here the WAL ends or is not written'
          : `has magic ${magic.toString(16).toUpperCase()}, expected ${this.#magic.toString(16).toUpperCase()}`,
      );
    const info = h.readUInt16LE(2);
    if ((info & ~XLP_ALL_FLAGS) !== 0) throw corruptPage(pageLsn, `has unknown flags ${info.toString(16)}`);
    const address = h.readUInt32LE(8) + h.readUInt32LE(12) * 0x1_0000_0000;
    if (address !== pageLsn)
      throw corruptPage(pageLsn, `says it is at ${h.readUInt32LE(12).toString(16)}/${h.readUInt32LE(8).toString(16)}: a recycled segment`);
    const isLong = (info & XLP_LONG_HEADER) !== 0;
    if (isLong !== (pageLsn % WAL_SEGMENT_BYTES === 0)) throw corruptPage(pageLsn, 'has a header of the wrong length');
    if (!isLong) return;
    const systemId = h.readBigUInt64LE(24);
    if (this.#systemId !== undefined && systemId !== this.#systemId)
      throw corruptPage(pageLsn, `is of system ${systemId}, expected ${this.#systemId}`);
    if (h.readUInt32LE(32) !== WAL_SEGMENT_BYTES || h.readUInt32LE(36) !== XLOG_BLCKSZ)
      throw corruptPage(pageLsn, 'has a segment or block size other than 16 MiB and 8 KiB');
  }

  /** Appends what the page and the chunk have of the record; true when it is whole. */
  #collect(left: number): boolean {
    const got = this.#got;
    const want = (this.#total === 0 ? RECORD_HEADER_BYTES : this.#total) - got;
    const n = Math.min(want, left, this.#chunk.length - this.#pos);
    if (got + n > this.#assembly.length) {
      const bigger = Buffer.allocUnsafeSlow(Math.max(got + n, Math.min(this.#total, this.#assembly.length * 2)));
      this.#assembly.copy(bigger, 0, 0, got);
      this.#assembly = bigger;
    }
    this.#chunk.copy(this.#assembly, got, this.#pos, this.#pos + n);
    this.#pos += n;
    this.#got = got + n;
    if (this.#total === 0 && this.#got >= 4) this.#total = checkedRecordLength(this.#assembly, 0, this.#recordLsn);
    // A stale header of a recycled page is found out here, before its length makes us wait for bytes that never come.
    if (got < RECORD_HEADER_BYTES && this.#got >= RECORD_HEADER_BYTES)
      this.#checkPrev(recordPrev(this.#assembly, 0, this.#recordLsn), this.#recordLsn);
    return this.#total > 0 && this.#got >= this.#total;
  }

  #checkPrev(prev: number, lsn: number): void {
    if (this.#prev >= 0 ? prev !== this.#prev : prev >= lsn)
      throw corruptRecord(
        lsn,
        `prev-link ${formatLsn(prev as Lsn)}, expected ${this.#prev >= 0 ? formatLsn(this.#prev as Lsn) : 'an earlier record'}`,
      );
  }

  /** Checks and decodes a whole record; #pos already stands behind it. */
  #finish(buf: Buffer, offset: number, total: number, lsn: number): DecodedRecord {
    this.#checkPrev(recordPrev(buf, offset, lsn), lsn);
    const matches =
      buf === this.#chunk
        ? this.#view.getInt32(offset + 20, true) >>> 0 === recordCrcByView(buf, this.#view, offset, total)
        : recordCrcMatches(buf, offset, total);
    if (!matches) throw corruptRecord(lsn, 'checksum does not match');
    let end = this.#base + this.#pos;
    if (buf[offset + 17] === RM_XLOG_ID && ((buf[offset + 16] as number) & XLR_RMGR_INFO_MASK) === XLOG_SWITCH) {
      // The rest of the segment is filler.
      end = Math.ceil(end / WAL_SEGMENT_BYTES) * WAL_SEGMENT_BYTES;
      this.#pos = end - this.#base;
    }
    const record = decodeRecord(buf, offset, total, lsn as Lsn, end as Lsn, this.#record);
    this.#started = true;
    this.#prev = lsn;
    this.#endLsn = end as Lsn;
    return record;
  }
}

const corruptPage = (lsn: number, what: string): LakebaseError =>
  new LakebaseError('CORRUPT', `WAL page at ${formatLsn(lsn as Lsn)} ${what}`);
