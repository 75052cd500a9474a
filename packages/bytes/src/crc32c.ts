/** CRC-32C (Castagnoli), as Postgres uses for WAL and pg_control. Not zlib's CRC-32. */
import { crc32c as native } from '@node-rs/crc32';
import { asBuffer } from './reader.ts';

/** CRC of `bytes`, continuing from `seed` (the CRC of what came before). */
export function crc32c(bytes: Uint8Array, seed = 0): number {
  return native(asBuffer(bytes), seed) >>> 0;
}
