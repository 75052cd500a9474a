/** WAL files as a walsender would send them: for benchmarks. */
import { readdirSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { type Lsn, WAL_SEGMENT_BYTES } from '@lakebase/ids';

const CHUNK_BYTES = 131_072;

/** Segments from `from` on, in chunks; ends at `end` or where the WAL ends. `memory`: where every chunk is put, as the WAL receiver does it.
 *  Read as from a socket, off this thread: files that are in nobody's cache must not be what is measured. */
export async function* walChunks(walDir: string, from: Lsn, end: Lsn, memory?: Buffer): AsyncGenerator<Buffer> {
  const names = readdirSync(walDir)
    .filter((n) => /^[0-9A-F]{24}$/.test(n))
    .sort();
  for (const name of names) {
    const segment = (Number.parseInt(name.slice(8, 16), 16) * 256 + Number.parseInt(name.slice(16), 16)) * WAL_SEGMENT_BYTES;
    if (segment + WAL_SEGMENT_BYTES <= from || segment >= end) continue;
    const file = await open(join(walDir, name), 'r');
    try {
      for (let at = Math.max(0, from - segment); segment + at < end; ) {
        const length = Math.min(memory?.length ?? CHUNK_BYTES, WAL_SEGMENT_BYTES - at, end - segment - at);
        const chunk = memory?.subarray(0, length) ?? Buffer.allocUnsafe(length);
        const n = chunk.length === 0 ? 0 : (await file.read(chunk, 0, chunk.length, at)).bytesRead;
        if (n === 0) break;
        yield chunk.subarray(0, n);
        at += n;
      }
    } finally {
      await file.close();
    }
  }
}
