/** The open watches: a snapshot first, then every change, and a heartbeat each second. docs/flows/key-path.md
 *  Invariant: a watcher that does not read is disconnected, never waited for: it then locks by its own lease. */
import type { ServerResponse } from 'node:http';
import type { WatchLine, WatchedProject } from '@lakebase/api';

const HEARTBEAT_MS = 1_000;
const BACKLOG_MAX = 16 * 1024 * 1024;

export class WatchHub {
  readonly #watchers = new Set<ServerResponse>();
  readonly #snapshot: () => readonly WatchedProject[];
  readonly #leaseSeconds: number;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: { snapshot: () => readonly WatchedProject[]; leaseSeconds: number }) {
    this.#snapshot = options.snapshot;
    this.#leaseSeconds = options.leaseSeconds;
  }

  get size(): number {
    return this.#watchers.size;
  }

  start(): void {
    this.#timer = setInterval(() => this.#send({ kind: 'heartbeat' }), HEARTBEAT_MS);
  }

  add(response: ServerResponse): void {
    response.writeHead(200, { 'content-type': 'application/x-ndjson', 'cache-control': 'no-store' });
    response.on('error', () => {});
    response.once('close', () => this.#watchers.delete(response));
    response.write(
      `${JSON.stringify({ kind: 'snapshot', projects: this.#snapshot(), leaseSeconds: this.#leaseSeconds } satisfies WatchLine)}\n`,
    );
    this.#watchers.add(response);
  }

  change(project: WatchedProject): void {
    this.#send({ kind: 'change', ...project });
  }

  close(): void {
    clearInterval(this.#timer);
    for (const watcher of this.#watchers) watcher.end();
  }

  #send(line: WatchLine): void {
    const text = `${JSON.stringify(line)}\n`;
    for (const watcher of this.#watchers) {
      if (watcher.writableLength > BACKLOG_MAX) watcher.destroy();
      else watcher.write(text);
    }
  }
}
