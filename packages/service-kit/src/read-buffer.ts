/** Node reads small amounts from every socket of a thread into one buffer of 64 KiB that it keeps for good: what was read last from any socket
 *  stays there until it is read over. {@link overwriteReadBuffer} reads 64 KiB of zeros from a socket to ourselves. */
import { type Socket, connect, createServer } from 'node:net';
import { once } from 'node:events';
import { randomBytes } from 'node:crypto';

const READ_BUFFER_BYTES = 65_536;
const MS_MAX = 1_000;

export async function overwriteReadBuffer(): Promise<void> {
  const server = createServer({ pauseOnConnect: true });
  // An abstract address: nothing to leave behind in the file system.
  const path = `\0lakebase-${process.pid}-${randomBytes(8).toString('hex')}`;
  const signal = AbortSignal.timeout(MS_MAX);
  let writer: Socket | undefined;
  let reader: Socket | undefined;
  try {
    server.listen(path);
    await once(server, 'listening', { signal });
    const accepted = once(server, 'connection', { signal }) as Promise<[Socket]>;
    writer = connect(path);
    [reader] = await accepted;
    // All of it must lie in the kernel before the first read, so that one read fetches it whole.
    await new Promise<void>((resolve, reject) => {
      signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true });
      writer?.write(Buffer.alloc(READ_BUFFER_BYTES), (error) => (error ? reject(error) : resolve()));
    });
    reader.resume();
    await once(reader, 'data', { signal });
  } finally {
    writer?.destroy();
    reader?.destroy();
    server.close();
  }
}
