/** Buffers that synchronous routines use again and again: pieces of pages stay in them. {@link wipeScratch} zeroes them all, for when a project's
 *  key goes; between two calls of a routine nothing of value is in its scratch. */
const buffers: Buffer[] = [];

export function scratchBuffer(bytes: number): Buffer {
  const buffer = Buffer.alloc(bytes);
  buffers.push(buffer);
  return buffer;
}

export function wipeScratch(): void {
  for (const buffer of buffers) buffer.fill(0);
}
