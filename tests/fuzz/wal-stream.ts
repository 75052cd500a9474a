/** Hostile WAL bytes: records are laid out over pages as Postgres does it, then headers of pages and records are changed; record checksums
 *  are right again afterwards more often than not. The reader must give records, ask for more, or refuse. */
import { isCode } from '@lakebase/base';
import { type Lsn, XLOG_BLCKSZ } from '@lakebase/ids';
import { encodePageHeader, recordCrc, WalDecoder } from '@lakebase/pg-format';
import type { Random } from './random.ts';
import { encodeSample, type Sample } from './sample.ts';

const START = 0x300_0000;
const SYSTEM_ID = 7n;
const MAX_RECORD_BYTES = 40_000;
const VALUES = [0, 1, 2, 4, 8, 16, 23, 24, 25, 0x7fff, 0xffff, 0x1_0000, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];

export interface Stream {
  readonly bytes: Buffer;
  readonly chunkBytes: number;
  readonly startLsn: Lsn;
}

export function makeStream(samples: readonly Sample[], major: number, r: Random): Stream {
  const pieces: Buffer[] = [];
  const records: { at: number; bytes: Buffer }[] = [];
  const pageHeaders: number[] = [];
  let at = START;
  let prev = START - 64;
  const put = (bytes: Buffer): void => {
    pieces.push(bytes);
    at += bytes.length;
  };
  const header = (remaining: number): void => {
    if (at % XLOG_BLCKSZ !== 0) return;
    pageHeaders.push(at - START);
    put(encodePageHeader(at as Lsn, { major, systemId: SYSTEM_ID, remaining }));
  };
  for (let n = 1 + r.below(5); n > 0; n--) {
    header(0);
    const encoded = Buffer.from(encodeSample(r.pick(samples)));
    if (encoded.length > MAX_RECORD_BYTES) continue;
    encoded.writeUInt32LE(prev, 8);
    encoded.writeUInt32LE(0, 12);
    prev = at;
    if (r.oneIn(6)) encoded.writeUInt32LE(r.pick(VALUES), r.pick([0, 4, 8, 12, 16]));
    if (r.oneIn(4)) encoded[r.below(encoded.length)] = r.next32();
    if (!r.oneIn(8)) encoded.writeUInt32LE(recordCrc(encoded, 0, encoded.length), 20);
    records.push({ at: at - START, bytes: encoded });
    for (let done = 0; done < encoded.length; ) {
      if (done > 0) header(encoded.length - done);
      const room = Math.min(encoded.length - done, XLOG_BLCKSZ - (at % XLOG_BLCKSZ));
      put(encoded.subarray(done, done + room));
      done += room;
    }
    put(Buffer.alloc((8 - (at % 8)) % 8));
  }
  const bytes = Buffer.concat(pieces);
  if (r.oneIn(2)) bytes.writeUInt32LE(r.pick(VALUES), r.pick(pageHeaders) + r.pick([0, 0, 2, 4, 8, 12, 16, 16]));
  if (r.oneIn(6)) bytes[r.below(bytes.length)] = r.next32();
  // From a record, a page, or nowhere in particular.
  const from = r.oneIn(3) ? (r.oneIn(2) ? (r.pick(records)?.at ?? 0) : r.below(bytes.length) & ~7) : 0;
  return {
    bytes: Buffer.from(bytes.subarray(from, r.oneIn(4) ? from + r.below(bytes.length) : undefined)),
    chunkBytes: 1 + r.below(20_000),
    startLsn: (START + from) as Lsn,
  };
}

/** Reads to the end or the first refusal; throws whatever is neither. Returns the number of records. */
export function readStream(stream: Stream, major: number): { records: number; refused: boolean } {
  const decoder = new WalDecoder({ startLsn: stream.startLsn, major, systemId: SYSTEM_ID });
  let records = 0;
  try {
    for (let at = 0; at < stream.bytes.length; at += stream.chunkBytes) {
      decoder.push(stream.bytes.subarray(at, at + stream.chunkBytes));
      while (decoder.next() !== undefined) {
        records++;
        if (records * 24 > stream.bytes.length) throw new Error('more records than the bytes can hold');
      }
    }
  } catch (error) {
    if (isCode(error, 'CORRUPT') || isCode(error, 'UNSUPPORTED')) return { records, refused: true };
    throw error;
  }
  return { records, refused: false };
}
