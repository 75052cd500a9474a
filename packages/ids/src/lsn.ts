/** Log sequence numbers.
 *  An LSN is a byte position in a branch's WAL. It is a JavaScript number: 2^53 bytes is 9 PB of WAL per branch,
 *  and a bigint read costs tens of times two 32-bit reads. `lsn()` asserts the bound.
 *  Text form is Postgres's: two hexadecimal halves, `16/B374D848`; binary form is two u32 halves, high first. */
import { LakebaseError } from '@lakebase/base';

declare const lsnBrand: unique symbol;
export type Lsn = number & { readonly [lsnBrand]: true };

export const WAL_SEGMENT_BYTES = 16_777_216;
export const XLOG_BLCKSZ = 8192;
/** SizeOfXLogLongPHD, xlog_internal.h: header of the first page of a segment. */
export const LONG_PAGE_HEADER_BYTES = 40;
/** SizeOfXLogShortPHD. */
export const SHORT_PAGE_HEADER_BYTES = 24;
export const INVALID_LSN: Lsn = 0 as Lsn;
export const MAX_LSN: Lsn = Number.MAX_SAFE_INTEGER as Lsn;

export function lsn(value: number): Lsn {
  if (!Number.isSafeInteger(value) || value < 0) throw new LakebaseError('INVALID_LSN', `not an LSN: ${value}`);
  return value as Lsn;
}

export function lsnFromHalves(high: number, low: number): Lsn {
  return lsn((high >>> 0) * 0x1_0000_0000 + (low >>> 0));
}

export const lsnHigh = (value: Lsn): number => Math.floor(value / 0x1_0000_0000) >>> 0;
/** `>>>` is modulo 2^32 for every number; `%` of a number that is not an int32 is a call into C. */
export const lsnLow = (value: Lsn): number => value >>> 0;

const LSN_TEXT = /^([0-9A-Fa-f]{1,8})\/([0-9A-Fa-f]{1,8})$/;

export function parseLsn(text: string): Lsn {
  const match = LSN_TEXT.exec(text);
  if (match === null)
    throw new LakebaseError(
      'INVALID_LSN',
      `not an LSN: ${JSON.stringify(text.slice(0, 40))}; expected two hexadecimal halves such as 0/16B3748`,
    );
  return lsnFromHalves(Number.parseInt(match[1] as string, 16), Number.parseInt(match[2] as string, 16));
}

export function formatLsn(value: Lsn): string {
  return `${lsnHigh(value).toString(16).toUpperCase()}/${lsnLow(value).toString(16).toUpperCase()}`;
}

/** MAXALIGN: records start on 8-byte boundaries. */
export const alignLsn = (value: number): Lsn => (Math.ceil(value / 8) * 8) as Lsn;
export const segmentNumber = (value: number): number => Math.floor(value / WAL_SEGMENT_BYTES);
export const segmentOffset = (value: number): number => value % WAL_SEGMENT_BYTES;
export const pageOffset = (value: number): number => value % XLOG_BLCKSZ;

/** Size of the page header at page start `value` (long on the first page of a segment). */
export const pageHeaderBytes = (value: number): number =>
  segmentOffset(value) < XLOG_BLCKSZ ? LONG_PAGE_HEADER_BYTES : SHORT_PAGE_HEADER_BYTES;

/** Where a record that starts at or after `value` really begins: past the page header when `value` is a page boundary. */
export function recordStartAt(value: number): Lsn {
  const aligned = alignLsn(value);
  return (pageOffset(aligned) === 0 ? aligned + pageHeaderBytes(aligned) : aligned) as Lsn;
}

/** XLogFileName with timeline 1 (we never change the Postgres timeline). */
export function walFileName(segment: number): string {
  const perId = 0x1_0000_0000 / WAL_SEGMENT_BYTES;
  const hex = (n: number): string => n.toString(16).toUpperCase().padStart(8, '0');
  return `00000001${hex(Math.floor(segment / perId))}${hex(segment % perId)}`;
}
