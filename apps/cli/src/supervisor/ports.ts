/** Ports. The two public ones are given; internal ones are chosen once, below the range the kernel hands out for outgoing connections,
 *  and remembered: other services have stored them. */
import { randomInt } from 'node:crypto';
import { type AddressInfo, createServer } from 'node:net';
import { LakebaseError } from '@lakebase/base';

const RANGE = { from: 20_000, to: 32_000 };

export function isFree(port: number, host = '127.0.0.1'): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EADDRINUSE') resolve(false);
      else if (error.code === 'EACCES') resolve(false);
      else reject(error);
    });
    server.listen({ port, host, exclusive: true }, () => {
      const ok = (server.address() as AddressInfo).port === port;
      server.close(() => resolve(ok));
    });
  });
}

export async function requireFree(port: number, variable: string, host?: string): Promise<void> {
  if (!(await isFree(port, host)))
    throw new LakebaseError('CONFIG', `port ${port} is taken: set ${variable} to a free port, or stop what uses it`);
}

/** Keeps remembered ports that are free, and chooses the others. `changed`: a remembered one was taken by somebody else. */
export async function choosePorts<K extends string>(
  names: readonly K[],
  remembered: Partial<Record<K, number>>,
  avoid: readonly number[],
): Promise<{ ports: Record<K, number>; moved: K[] }> {
  const used = new Set(avoid);
  const ports = {} as Record<K, number>;
  const moved: K[] = [];
  for (const name of names) {
    const old = remembered[name];
    if (old !== undefined && !used.has(old) && (await isFree(old))) {
      ports[name] = old;
    } else {
      if (old !== undefined) moved.push(name);
      ports[name] = await freePort(used, new Set(Object.values(remembered) as number[]));
    }
    used.add(ports[name]);
  }
  return { ports, moved };
}

async function freePort(used: ReadonlySet<number>, keepOff: ReadonlySet<number>): Promise<number> {
  for (let attempt = 0; attempt < 500; attempt++) {
    const port = randomInt(RANGE.from, RANGE.to);
    if (!used.has(port) && !keepOff.has(port) && (await isFree(port))) return port;
  }
  throw new LakebaseError('RESOURCE_EXHAUSTED', `no free port between ${RANGE.from} and ${RANGE.to}`);
}
