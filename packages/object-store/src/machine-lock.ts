/** A lock among the processes of one machine that ends with its holder, however that ends: who listens at an abstract socket address has it.
 *  Invariant: the kernel gives an address to one socket at a time. Machines (and containers with networks of their own) that share a disk are
 *  not kept apart. */
import { createHash } from 'node:crypto';
import { type Server, type Socket, connect, createServer } from 'node:net';
import { LakebaseError } from '@lakebase/base';

export async function withMachineLock<T>(name: string, waitMs: number, run: () => Promise<T>): Promise<T> {
  const path = `\0lakebase-lock-${createHash('sha256').update(name).digest('hex').slice(0, 40)}`;
  const deadline = performance.now() + waitMs;
  for (;;) {
    const waiting = new Set<Socket>();
    const server = await listen(path, waiting);
    if (server !== undefined) {
      try {
        return await run();
      } finally {
        server.close();
        for (const socket of waiting) socket.destroy();
      }
    }
    await released(path, deadline - performance.now());
  }
}

/** Undefined: somebody else has it. */
function listen(path: string, waiting: Set<Socket>): Promise<Server | undefined> {
  return new Promise((resolve, reject) => {
    const server = createServer((socket) => {
      waiting.add(socket);
      socket.on('error', () => {}).on('close', () => waiting.delete(socket));
      // Its end is seen only when it is read.
      socket.resume();
    });
    server.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EADDRINUSE') resolve(undefined);
      else reject(error);
    });
    server.listen(path, () => resolve(server));
  });
}

/** Resolves when the holder may have let go: it closes every connection then. */
function released(path: string, ms: number): Promise<void> {
  return new Promise((resolve, reject) => {
    const socket = connect(path);
    const timer = setTimeout(
      () => {
        reject(new LakebaseError('UNAVAILABLE', 'another process replaces the same object for too long'));
        socket.destroy();
      },
      Math.max(0, ms),
    );
    socket.on('error', () => {}); // nobody listens any more: its close says so
    socket.once('close', () => {
      clearTimeout(timer);
      resolve();
    });
    socket.resume();
  });
}
