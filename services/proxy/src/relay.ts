/** Moves bytes between a client and its compute. In the steady state nothing is parsed: a chunk read on one side is written to the other.
 *
 *  Only the tail of each chunk is looked at, to know two things when one side goes away: whether the compute's last bytes were a
 *  ReadyForQuery (then, and only then, an ErrorResponse may be added without falling into the middle of a message), and whether the
 *  client's were a Terminate (then there is nothing to report). */
import type { Socket } from 'node:net';
import { encodeError } from '@lakebase/pg-wire';

export interface RelayEnd {
  readonly bytesToClient: number;
  readonly bytesToCompute: number;
  readonly by: 'client' | 'compute' | 'proxy';
}

/** How long a client may take to read what is left after its compute is gone. */
const LINGER_MS = 30_000;
/** NoticeResponse, NotificationResponse, ParameterStatus. */
const ASIDES: ReadonlySet<number> = new Set([0x4e, 0x41, 0x53]);

export class Relay {
  readonly #client: Socket;
  readonly #compute: Socket;
  readonly #onEnd: (end: RelayEnd) => void;
  readonly #explain: () => Promise<string | undefined>;
  #betweenMessages = false;
  #terminated = false;
  #over = false;
  #toClientBase = 0;
  #toComputeBase = 0;

  /** Both sockets paused and without data listeners. `onEnd` is called once; `explain` when the compute went away, for the reason to tell. */
  constructor(client: Socket, compute: Socket, onEnd: (end: RelayEnd) => void, explain: () => Promise<string | undefined>) {
    this.#client = client;
    this.#compute = compute;
    this.#onEnd = onEnd;
    this.#explain = explain;
  }

  /** `greeting` goes to the client first, `early` (what the client sent ahead) to the compute. */
  start(greeting: Buffer, early: Buffer): void {
    const client = this.#client,
      compute = this.#compute;
    this.#toClientBase = client.bytesWritten;
    this.#toComputeBase = compute.bytesWritten;
    compute.on('data', (chunk) => {
      const n = chunk.length;
      this.#betweenMessages = endsWithReady(chunk, n) || (this.#betweenMessages && onlyAsides(chunk));
      if (!client.write(chunk)) compute.pause();
    });
    client.on('data', (chunk) => {
      const n = chunk.length;
      this.#terminated = n >= 5 && chunk[n - 5] === 0x58 && chunk.readUInt32BE(n - 4) === 4;
      if (!compute.write(chunk)) client.pause();
    });
    client.on('drain', () => compute.resume());
    compute.on('drain', () => client.resume());
    client.on('end', () => this.#finish('client')).on('close', () => this.#finish('client'));
    compute.on('end', () => this.#finish('compute')).on('close', () => this.#finish('compute'));
    if (client.destroyed) return this.#finish('client');
    if (compute.destroyed) {
      this.#betweenMessages = true;
      client.write(greeting);
      return this.#finish('compute');
    }
    this.#betweenMessages = endsWithReady(greeting, greeting.length);
    client.write(greeting);
    if (early.length > 0) compute.write(early);
    client.resume();
    compute.resume();
  }

  /** Ends the session for a proxy that stops. */
  stop(): void {
    this.#finish('proxy');
  }

  #finish(by: RelayEnd['by']): void {
    if (this.#over) return;
    this.#over = true;
    const client = this.#client,
      compute = this.#compute;
    const speak = by !== 'client' && this.#betweenMessages && !this.#terminated;
    client.removeAllListeners('data');
    compute.removeAllListeners('data');
    if (by === 'proxy') compute.destroySoon();
    if (by === 'client') {
      client.destroySoon();
      compute.destroySoon();
    } else {
      // Discard what the client still sends: closing on unread bytes would reset the connection before it reads the message.
      client.resume();
      compute.destroySoon();
      void this.#sayFarewell(by, speak);
      if (!client.destroyed) {
        const timer = setTimeout(() => client.destroy(), LINGER_MS);
        timer.unref();
        client.once('close', () => clearTimeout(timer));
      }
    }
    this.#onEnd({
      by,
      bytesToClient: client.bytesWritten - this.#toClientBase,
      bytesToCompute: compute.bytesWritten - this.#toComputeBase,
    });
  }

  async #sayFarewell(by: 'compute' | 'proxy', speak: boolean): Promise<void> {
    const client = this.#client;
    if (speak) {
      const reason = by === 'compute' ? await this.#explain().catch(() => undefined) : undefined;
      if (client.writable) client.write(farewell(by, reason));
    }
    client.destroySoon();
  }
}

/** Whole notices, notifications and parameter reports and nothing else: what a server may say unasked, such as its farewell at an immediate stop. */
function onlyAsides(chunk: Buffer): boolean {
  let at = 0;
  while (at + 5 <= chunk.length && ASIDES.has(chunk[at] as number)) at += 1 + chunk.readUInt32BE(at + 1);
  return at === chunk.length;
}

const endsWithReady = (chunk: Buffer, n: number): boolean => n >= 6 && chunk[n - 6] === 0x5a && chunk.readUInt32BE(n - 5) === 5;

const farewell = (by: 'compute' | 'proxy', reason: string | undefined): Buffer =>
  encodeError({
    severity: 'FATAL',
    sqlstate: '57P01',
    message:
      by === 'proxy'
        ? 'terminating connection because the proxy is stopping'
        : `terminating connection because ${reason ?? 'the compute of this endpoint is gone'}`,
    ...(reason === undefined ? { hint: 'In a moment you should be able to reconnect to the database and repeat your command.' } : {}),
  });
