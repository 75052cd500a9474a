/** Byte ranges: what a caller may ask for, and what it means within an object of a known size. */
import { LakebaseError } from '@lakebase/base';
import type { ByteRange } from './object-store.ts';

const whole = (n: number): boolean => Number.isSafeInteger(n) && n >= 0;

/** Throws INVALID_ARGUMENT for a range that fits no object. */
export function checkRange(range: ByteRange, key: string): void {
  if ('suffix' in range ? !whole(range.suffix) : !(whole(range.offset) && whole(range.length)))
    throw new LakebaseError('INVALID_ARGUMENT', `object ${key}: ${JSON.stringify(range)} is no range of bytes`);
}

/** The range within an object of `size` bytes, cut at its end. Nothing is at its very end; beyond it is INVALID_ARGUMENT. */
export function absolute(range: ByteRange | undefined, size: number, key: string): { offset: number; length: number } {
  if (range === undefined) return { offset: 0, length: size };
  checkRange(range, key);
  const wanted = 'suffix' in range ? { offset: Math.max(0, size - range.suffix), length: Math.min(size, range.suffix) } : range;
  if (wanted.offset > size)
    throw new LakebaseError('INVALID_ARGUMENT', `object ${key} has ${size} bytes; there is nothing at ${wanted.offset}`);
  return { offset: wanted.offset, length: Math.min(wanted.length, size - wanted.offset) };
}

/** What to ask an HTTP server for, or undefined where it could not say: an empty range. The end is inclusive. */
export function httpRange(range: ByteRange): { readonly header: string } | undefined {
  if ('suffix' in range) return range.suffix === 0 ? undefined : { header: `bytes=-${range.suffix}` };
  return range.length === 0
    ? undefined
    : { header: `bytes=${range.offset}-${Math.min(range.offset + range.length - 1, Number.MAX_SAFE_INTEGER)}` };
}

/** `bytes 0-9/100` of an answer. */
export function parseContentRange(header: string | null | undefined): { offset: number; length: number; size: number } | undefined {
  const parts = /^bytes (\d{1,15})-(\d{1,15})\/(\d{1,15})$/.exec(header ?? '');
  if (parts === null) return undefined;
  const [first, last, size] = parts.slice(1).map(Number) as [number, number, number];
  return first <= last && last < size ? { offset: first, length: last - first + 1, size } : undefined;
}
