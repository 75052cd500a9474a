/** Makes valid WAL for tests: records with chained prev-links and CRCs, laid out over pages and segments as xlog.c does it. */
import { LONG_PAGE_HEADER_BYTES, type Lsn, lsnHigh, lsnLow, pageHeaderBytes, WAL_SEGMENT_BYTES, XLOG_BLCKSZ } from '@lakebase/ids';
import { RM_XLOG_ID, XLOG_SWITCH } from '../constants.ts';
import { recordCrc } from '../record-crc.ts';
import { encodePageHeader } from '../synth.ts';

export interface WrittenRecord {
  readonly lsn: Lsn;
  readonly endLsn: Lsn;
  readonly bytes: Buffer;
}

/** Header fields of a record to be made; `body` is everything behind the header. */
export interface RecordFields {
  readonly rmid: number;
  readonly info: number;
  readonly xid?: number;
  readonly prev?: Lsn;
  readonly body: Buffer;
}

export function makeRecord(fields: RecordFields): Buffer {
  const record = Buffer.alloc(24 + fields.body.length);
  record.writeUInt32LE(record.length, 0);
  record.writeUInt32LE(fields.xid ?? 0, 4);
  record.writeUInt32LE(lsnLow(fields.prev ?? (0 as Lsn)), 8);
  record.writeUInt32LE(lsnHigh(fields.prev ?? (0 as Lsn)), 12);
  record[16] = fields.info;
  record[17] = fields.rmid;
  fields.body.copy(record, 24);
  record.writeUInt32LE(recordCrc(record, 0, record.length), 20);
  return record;
}

/** Main data behind its header. */
export function mainDataBody(data: Buffer): Buffer {
  if (data.length < 256) return Buffer.concat([Buffer.from([255, data.length]), data]);
  const header = Buffer.alloc(5);
  header[0] = 254;
  header.writeUInt32LE(data.length, 1);
  return Buffer.concat([header, data]);
}

export class WalWriter {
  readonly startLsn: Lsn;
  readonly major: number;
  readonly systemId: bigint;
  readonly records: WrittenRecord[] = [];
  #pieces: Buffer[] = [];
  #at: number;
  #prev: Lsn;

  constructor(options: { startLsn: Lsn; major?: number; systemId?: bigint; prevLsn?: Lsn }) {
    this.startLsn = options.startLsn;
    this.major = options.major ?? 18;
    this.systemId = options.systemId ?? 7n;
    this.#at = options.startLsn;
    this.#prev = options.prevLsn ?? ((options.startLsn - 8) as Lsn);
  }

  get endLsn(): Lsn {
    return this.#at as Lsn;
  }

  bytes(): Buffer {
    const all = Buffer.concat(this.#pieces);
    this.#pieces = [all];
    return all;
  }

  #put(bytes: Buffer): void {
    this.#pieces.push(bytes);
    this.#at += bytes.length;
  }

  #page(remaining: number): void {
    if (this.#at % XLOG_BLCKSZ === 0)
      this.#put(encodePageHeader(this.#at as Lsn, { major: this.major, systemId: this.systemId, remaining }));
  }

  append(fields: Omit<RecordFields, 'prev'>): WrittenRecord {
    this.#page(0);
    const lsn = this.#at as Lsn;
    const record = makeRecord({ ...fields, prev: this.#prev });
    for (let done = 0; done < record.length; ) {
      if (done > 0) this.#page(record.length - done);
      const n = Math.min(record.length - done, XLOG_BLCKSZ - (this.#at % XLOG_BLCKSZ));
      this.#put(record.subarray(done, done + n));
      done += n;
    }
    this.#put(Buffer.alloc((8 - (this.#at % 8)) % 8));
    this.#prev = lsn;
    if (fields.rmid === RM_XLOG_ID && (fields.info & 0xf0) === XLOG_SWITCH)
      while (this.#at % WAL_SEGMENT_BYTES !== 0) this.#put(Buffer.alloc(XLOG_BLCKSZ - (this.#at % XLOG_BLCKSZ)));
    const written = { lsn, endLsn: this.#at as Lsn, bytes: record };
    this.records.push(written);
    return written;
  }
}

/** Distance to the next page end, for tests that place records. */
export const roomOnPage = (at: number): number =>
  at % XLOG_BLCKSZ === 0 ? XLOG_BLCKSZ - pageHeaderBytes(at) : XLOG_BLCKSZ - (at % XLOG_BLCKSZ);

export const LONG_HEADER: number = LONG_PAGE_HEADER_BYTES;
