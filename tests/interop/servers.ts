/** Independent servers for the interop tests: where they are looked for, and how they are started and stopped. */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createConnection, createServer } from 'node:net';
import { homedir } from 'node:os';
import { delimiter, join } from 'node:path';

/** Not in the repository: these are other people's programs, and large. */
export const CACHE = process.env['LAKEBASE_INTEROP_CACHE'] ?? join(homedir(), '.cache', 'lakebase-interop');
const START_TIMEOUT_MS = 180_000;

/** The program of that name in the cache or on the PATH. */
export function findProgram(name: string, ...places: string[]): string | null {
  const directories = [...places.map((place) => join(CACHE, place)), ...(process.env['PATH'] ?? '').split(delimiter)];
  return directories.map((directory) => join(directory, name)).find((path) => existsSync(path)) ?? null;
}

export interface RunningServer {
  readonly url: string;
  /** SIGSTOP: it takes connections and answers nothing. */
  signal(name: NodeJS.Signals): void;
  stop(): Promise<void>;
}

/** Starts it on a free port and waits until `ready` answers; `port`: until the port is open, for servers that do not speak HTTP/1.1. */
export async function startServer(
  program: string,
  args: (port: number) => string[],
  ready: ((url: string) => string) | 'port',
  env: Readonly<Record<string, string>> = {},
): Promise<RunningServer> {
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const child = spawn(program, args(port), { stdio: ['ignore', 'ignore', 'ignore'], env: { ...process.env, ...env } });
  const deadline = Date.now() + START_TIMEOUT_MS;
  while (!(await (ready === 'port' ? isOpen(port) : answers(ready(url))))) {
    if (child.exitCode !== null) throw new Error(`${program} ended with code ${child.exitCode}`);
    if (Date.now() > deadline) {
      child.kill('SIGKILL');
      throw new Error(`${program} does not answer after ${START_TIMEOUT_MS / 1_000} s`);
    }
    // A server of others tells in no other way that it is up.
    await new Promise((resolve) => setTimeout(resolve, 250));
  }
  return { url, signal: (name) => child.kill(name), stop: () => stop(child) };
}

async function answers(url: string): Promise<boolean> {
  try {
    await fetch(url, { signal: AbortSignal.timeout(5_000) });
    return true;
  } catch {
    return false;
  }
}

function isOpen(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = createConnection({ host: '127.0.0.1', port }, () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}

function stop(child: ChildProcess): Promise<void> {
  return new Promise((resolve) => {
    child.once('exit', () => resolve());
    if (child.exitCode !== null || child.signalCode !== null) resolve();
    else child.kill('SIGTERM');
  });
}

export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address() as { port: number };
      server.close(() => resolve(port));
    });
  });
}
