/** The agent's side of the shim protocol (docs/protocols/shim-agent.md): Postgres processes ask for blocks of a segment file, we ask the
 *  page service at one LSN. A page this compute never changed is the same at every LSN from the start on, and one that was changed is asked for only
 *  after a round has settled it (docs/protocols/shim-agent.md): the LSN is the start's at first, then the last round's.
 *  Invariants: answers on one connection keep the order of its requests' arrival (the shim has one in flight); an error is an errno for
 *  that read only; nothing is cached here beyond what is read ahead of a scan: the file is the cache; a request that comes after {@link PageRelay.raise}
 *  gets nothing that was asked for before. */
import { type Server, type Socket, createServer } from 'node:net';
import { LakebaseError, type Logger, errorMessage, isCode } from '@lakebase/base';
import { BLCKSZ, type Lsn, RELSEG_BLOCKS, type RelTag } from '@lakebase/ids';
import type { ResidentEntry } from '../resident-map.ts';
import type { PageClient } from './page-client.ts';
import { ReadAhead } from './read-ahead.ts';

const REQUEST_MAGIC = 0x4c425251;
const ANSWER_MAGIC = 0x4c425253;
const REQUEST_BYTES = 32;
const ANSWER_BYTES = 24;
const BLOCKS_MAX = 128;
const EIO = 5;
/** Of the cache worker: gives way to backends. */
const FLAG_BACKGROUND = 1;

/** What an entry of the resident map stands for. */
export interface RelayEntry {
  readonly tag: RelTag;
  /** Fork the pages come from in storage: the init fork for the main fork of an unlogged relation. */
  readonly source: RelTag;
  readonly segment: number;
}

export const relayEntry = ({ tag, sourceFork, segment }: ResidentEntry): RelayEntry => ({
  tag,
  source: { ...tag, fork: sourceFork },
  segment,
});

export interface PageRelayOptions {
  readonly socketPath: string;
  /** Of the start. */
  readonly entries: readonly RelayEntry[];
  /** One that came to the map since then; undefined while there is none of that number. */
  readonly added?: (index: number) => RelayEntry | undefined;
  readonly pages: Pick<PageClient, 'getPages' | 'memory'>;
  /** Of the start. */
  readonly lsn: Lsn;
  readonly log: Logger;
  /** Called for each run of blocks fetched: input of the boot set. */
  readonly onFault?: (tag: RelTag, block: number, count: number) => void;
  /** Pages that are here or on their way anyway, retained for us. */
  readonly prefetched?: (entry: number, block: number, count: number) => Promise<Buffer> | undefined;
}

export class PageRelay {
  readonly #options: PageRelayOptions;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #ahead: ReadAhead;
  /** An index stands for its file for good. */
  readonly #added = new Map<number, RelayEntry>();
  #waiting = 0;
  #lsn: Lsn;

  constructor(options: PageRelayOptions) {
    this.#options = options;
    this.#lsn = options.lsn;
    this.#ahead = new ReadAhead((tag, block, count) => options.pages.getPages(tag, block, count, this.#lsn), options.pages.memory);
    this.#server = createServer((socket) => this.#serve(socket));
  }

  /** Whether backends wait for pages. */
  get busy(): boolean {
    return this.#waiting > 0;
  }

  /** Of what {@link fetch} resolves with. */
  get memory(): PageClient['memory'] {
    return this.#options.pages.memory;
  }

  listen(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen(this.#options.socketPath, resolve);
    });
  }

  /** Every page that is asked for from now on is of `lsn`, which storage has. */
  raise(lsn: Lsn): void {
    if (lsn < this.#lsn) throw new LakebaseError('INVALID_ARGUMENT', 'pages are fetched at a later LSN already');
    this.#lsn = lsn;
    this.#ahead.forget();
  }

  /** Blocks of a segment file, at the LSN of now. The caller releases them. */
  async fetch({ entry, block, count }: { readonly entry: number; readonly block: number; readonly count: number }): Promise<Buffer> {
    const of = this.#entry(entry);
    return this.#options.pages.getPages(of.source, of.segment * RELSEG_BLOCKS + block, count, this.#lsn);
  }

  close(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }

  #serve(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on('close', () => this.#sockets.delete(socket));
    socket.on('error', () => socket.destroy());
    let pending: Buffer = Buffer.alloc(0);
    socket.on('data', (chunk) => {
      pending = pending.length === 0 ? chunk : Buffer.concat([pending, chunk]);
      while (pending.length >= REQUEST_BYTES) {
        const request = pending.subarray(0, REQUEST_BYTES);
        pending = pending.subarray(REQUEST_BYTES);
        if (request.readUInt32LE(0) !== REQUEST_MAGIC) {
          this.#options.log.error({}, 'shim sent a request without magic; closing its connection');
          socket.destroy();
          return;
        }
        void this.#answer(socket, request);
      }
    });
  }

  async #answer(socket: Socket, request: Buffer): Promise<void> {
    const index = request.readUInt32LE(4);
    const block = request.readUInt32LE(8);
    const count = request.readUInt16LE(12);
    const background = (request.readUInt16LE(14) & FLAG_BACKGROUND) !== 0;
    const head = Buffer.alloc(ANSWER_BYTES);
    head.writeUInt32LE(ANSWER_MAGIC, 0);
    request.copy(head, 8, 16, 24);
    let body: Buffer | undefined;
    let entry: RelayEntry | undefined;
    if (!background) this.#waiting++;
    try {
      entry = this.#entry(index);
      if (count < 1 || count > BLOCKS_MAX || block + count > RELSEG_BLOCKS)
        throw new Error(`bad request for entry ${index}, block ${block}+${count}`);
      const first = entry.segment * RELSEG_BLOCKS + block;
      body = await this.#prefetched(index, block, count);
      body ??= await (background ? this.fetch({ entry: index, block, count }) : this.#ahead.get(entry.source, first, count));
      head.writeUInt32LE(body.length / BLCKSZ, 16);
      if (!background) this.#options.onFault?.(entry.tag, first, count);
    } catch (error) {
      head.writeUInt32LE(EIO, 4);
      if (!isCode(error, 'CLOSED'))
        this.#options.log.error(
          { entry: entry?.tag, block, count, err: errorMessage(error) },
          'cannot fetch pages: the read fails with an I/O error',
        );
    }
    if (!background) this.#waiting--;
    socket.cork();
    socket.write(head);
    // What could not be sent is garbage: the socket may still look at it.
    if (body !== undefined) socket.write(body, (error) => error ?? this.#options.pages.memory.release(body));
    socket.uncork();
  }

  #entry(index: number): RelayEntry {
    const known = this.#options.entries[index] ?? this.#added.get(index);
    if (known !== undefined) return known;
    const entry = this.#options.added?.(index);
    if (entry === undefined) throw new LakebaseError('INVALID_ARGUMENT', `no entry ${index} in the resident map`);
    this.#added.set(index, entry);
    return entry;
  }

  async #prefetched(entry: number, block: number, count: number): Promise<Buffer | undefined> {
    try {
      return await this.#options.prefetched?.(entry, block, count);
    } catch {
      return undefined; // it is asked for anew, and that says what is wrong
    }
  }
}
