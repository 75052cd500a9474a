/** Deterministic WAL that is valid at the level this package looks at: page headers, record lengths, checksums, switches. For tests. */
import { crc32c } from '@lakebase/bytes';
import { type Lsn, WAL_SEGMENT_BYTES, XLOG_BLCKSZ, lsn, pageHeaderBytes } from '@lakebase/ids';

export interface SyntheticWal {
  readonly start: Lsn;
  readonly end: Lsn;
  readonly bytes: Buffer;
  /** Ends of complete records, in order; each is a legal place to begin. */
  readonly records: readonly Lsn[];
  /** Starts of the same records. */
  readonly starts: readonly Lsn[];
}

/** At least `length` bytes from `start`, ending with a whole record. `switchEvery`: every so many records is an XLOG_SWITCH. */
export function syntheticWal(start: Lsn, length: number, seed: number, switchEvery = 0): SyntheticWal {
  let state = seed;
  const random = (n: number): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 0x1_0000_0000) * n);
  };
  const pages: Buffer[] = [];
  let at: number = start;
  let left = 0;
  const put = (bytes: Buffer): void => {
    for (let offset = 0; offset < bytes.length; ) {
      if (at % XLOG_BLCKSZ === 0) pageHeader(bytes.length - offset);
      const n = Math.min(bytes.length - offset, XLOG_BLCKSZ - (at % XLOG_BLCKSZ));
      pages.push(bytes.subarray(offset, offset + n));
      offset += n;
      at += n;
    }
  };
  const pageHeader = (remaining: number): void => {
    const header = Buffer.alloc(pageHeaderBytes(at));
    header.writeUInt16LE(0xd118, 0);
    header.writeUInt16LE((left > 0 ? 1 : 0) | (header.length === 40 ? 2 : 0), 2);
    header.writeUInt32LE(1, 4);
    header.writeUInt32LE(at % 0x1_0000_0000, 8);
    header.writeUInt32LE(Math.floor(at / 0x1_0000_0000), 12);
    header.writeUInt32LE(left > 0 ? remaining : 0, 16);
    if (header.length === 40) {
      header.writeUInt32LE(WAL_SEGMENT_BYTES, 32);
      header.writeUInt32LE(XLOG_BLCKSZ, 36);
    }
    pages.push(header);
    at += header.length;
  };
  const records: Lsn[] = [];
  const starts: Lsn[] = [];
  while (at - start < length) {
    const isSwitch = switchEvery > 0 && records.length % switchEvery === switchEvery - 1;
    const total = isSwitch ? 24 : 24 + (random(20) === 0 ? random(30_000) : random(300));
    const record = Buffer.alloc(Math.ceil(total / 8) * 8);
    record.writeUInt32LE(total, 0);
    const previous = starts.at(-1) ?? lsn(Math.max(0, start - 120));
    record.writeUInt32LE(previous % 0x1_0000_0000, 8);
    record.writeUInt32LE(Math.floor(previous / 0x1_0000_0000), 12);
    record[16] = isSwitch ? 0x40 : 0;
    record[17] = isSwitch ? 0 : 10;
    for (let i = 24; i < total; i++) record[i] = random(256);
    record.writeUInt32LE(crc32c(record.subarray(0, 20), crc32c(record.subarray(24, total))), 20);
    left = 0;
    if (at % XLOG_BLCKSZ === 0) pageHeader(0);
    starts.push(lsn(at));
    left = 1;
    put(record);
    left = 0;
    if (isSwitch && at % WAL_SEGMENT_BYTES !== 0) {
      const zeros = WAL_SEGMENT_BYTES - (at % WAL_SEGMENT_BYTES);
      pages.push(Buffer.alloc(zeros));
      at += zeros;
    }
    records.push(lsn(at));
  }
  return { start, end: lsn(at), bytes: Buffer.concat(pages), records, starts };
}
