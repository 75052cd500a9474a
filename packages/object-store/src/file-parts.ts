/** A file in parts, each with its checksums, read without holding a part in memory: once for the checksum, once for the body. */
import { createHash } from 'node:crypto';
import { createReadStream, type ReadStream } from 'node:fs';
import { crc32 } from 'node:zlib';

const READ_BYTES = 256 * 1024;

export interface FilePart {
  readonly offset: number;
  readonly length: number;
}

/** At least one part; all but the last have `partBytes`. */
export function partsOf(size: number, partBytes: number): FilePart[] {
  const count = Math.max(1, Math.ceil(size / partBytes));
  return Array.from({ length: count }, (_, i) => ({ offset: i * partBytes, length: Math.min(partBytes, size - i * partBytes) }));
}

export const partStream = (path: string, { offset, length }: FilePart): ReadStream =>
  createReadStream(path, { start: offset, end: offset + length - 1, highWaterMark: READ_BYTES });

/** Big-endian base64, as in HTTP headers. */
export function crc32Header(value: number): string {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value >>> 0);
  return bytes.toString('base64');
}

export async function partCrc32(path: string, part: FilePart): Promise<number> {
  let sum = 0;
  if (part.length > 0) for await (const chunk of partStream(path, part) as AsyncIterable<Buffer>) sum = crc32(chunk, sum);
  return sum;
}

export async function partMd5(path: string, part: FilePart): Promise<Buffer> {
  const hash = createHash('md5');
  if (part.length > 0) for await (const chunk of partStream(path, part) as AsyncIterable<Buffer>) hash.update(chunk);
  return hash.digest();
}
