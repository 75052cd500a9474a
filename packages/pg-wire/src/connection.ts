/** A small Postgres client: simple queries and physical replication, over a Unix socket or TCP. Not a driver for applications.
 *
 *  Invariants:
 *  - One request at a time; further ones queue behind it.
 *  - After any failure the connection is closed and every waiter is rejected with the cause.
 *  - WAL handed to `onXLogData` is a view, good until the handler returns (or its promise settles); meanwhile nothing more is read,
 *    so a slow consumer slows the sender instead of filling memory. */
import { type Socket, connect as netConnect } from 'node:net';
import { LakebaseError, SerialQueue, errorMessage } from '@lakebase/base';
import { type Lsn, formatLsn } from '@lakebase/ids';
import { type BackendMessage, type Column, decodeBackend, encodeCopyDone } from './backend.ts';
import { PgError, ProtocolError, type ErrorFields } from './errors.ts';
import { MessageParser } from './framing.ts';
import { encodePassword, encodeQuery, encodeSaslInitialResponse, encodeSaslResponse, encodeTerminate } from './frontend.ts';
import { type Keepalive, type StandbyPosition, type XLogData, decodeReplicationFromServer, encodeStandbyStatus } from './replication.ts';
import { SCRAM_SHA_256, ScramClient } from './scram.ts';
import { encodeCancelRequest, encodeStartupMessage } from './startup.ts';

export interface PgConnectOptions {
  /** Host name or address, or the directory of the Unix socket when it begins with a slash. */
  readonly host: string;
  readonly port: number;
  readonly user: string;
  readonly database?: string;
  readonly password?: string;
  /** `physical` is `replication=true`. */
  readonly replication?: 'physical' | 'database';
  /** Further start-up parameters, for example `application_name` or `options`. */
  readonly parameters?: Readonly<Record<string, string>>;
  /** Protocol version to ask for; 3.0 unless said. */
  readonly protocol?: number;
  /** Covers connecting and authentication. */
  readonly connectTimeoutMs?: number;
  readonly signal?: AbortSignal;
  /** Largest message accepted. */
  readonly messageBytesMax?: number;
  /** What arrives is put into the same memory again and again, which becomes zeros when the connection ends: for long streams, whose garbage would keep
   *  the collector busy. A handler that keeps a view beyond its time sees other bytes then. */
  readonly reuseMemory?: boolean;
  readonly onNotice?: (fields: ErrorFields) => void;
}

export interface QueryResult {
  readonly columns: readonly Column[];
  /** Text values. */
  readonly rows: readonly (readonly (string | null)[])[];
  readonly tag: string;
}

export interface ReplicationHandlers {
  readonly onXLogData: (message: XLogData) => void | Promise<void>;
  /** Reply with `sendStatus` when `replyRequested`. */
  readonly onKeepalive?: (message: Keepalive) => void;
}

export interface ReplicationStream {
  sendStatus(position: StandbyPosition): void;
  /** Ends the stream in order; the connection is then free for queries. */
  stop(): Promise<void>;
  /** Resolves when the stream ended in order, rejects when the connection failed. */
  readonly ended: Promise<void>;
}

interface Waiter {
  onMessage(m: BackendMessage): void | Promise<void>;
  reject(error: Error): void;
}

const MESSAGE_BYTES_MAX = 1 << 26;
const CONNECT_TIMEOUT_MS = 10_000;
/** Taken from the socket at once where memory is used again. */
const RECEIVE_BYTES = 1 << 17;

export const unixSocketPath = (dir: string, port: number): string => `${dir}/.s.PGSQL.${port}`;

interface Receiving {
  readonly buffer: Buffer;
  readonly take: (bytes: Buffer) => void;
}

function openSocket(host: string, port: number, receiving?: Receiving): Socket {
  const onread =
    receiving === undefined
      ? {}
      : {
          onread: {
            buffer: receiving.buffer,
            callback: (n: number): boolean => {
              receiving.take(receiving.buffer.subarray(0, n));
              return true;
            },
          },
        };
  return host.startsWith('/')
    ? netConnect({ path: unixSocketPath(host, port), ...onread })
    : netConnect({ host, port, noDelay: true, ...onread });
}

export class PgConnection {
  /** ParameterStatus values. */
  readonly parameters: Map<string, string> = new Map();
  backendPid = 0;
  /** Settles when the socket is closed; undefined after `end` or a close in order. */
  readonly closed: Promise<Error | undefined>;

  readonly #socket: Socket;
  readonly #options: PgConnectOptions;
  readonly #parser: MessageParser;
  readonly #queue = new SerialQueue();
  #cancelKey: Buffer = Buffer.alloc(0);
  #waiter: Waiter | undefined;
  #stream: ReplicationHandlers | undefined;
  #error: Error | undefined;
  #ending = false;
  /** A handler's promise is pending: do not pull further messages. */
  #held = false;

  static async connect(options: PgConnectOptions): Promise<PgConnection> {
    options.signal?.throwIfAborted();
    const connection = new PgConnection(options);
    const onAbort = (): void => connection.#fail(options.signal?.reason instanceof Error ? options.signal.reason : new Error('aborted'));
    options.signal?.addEventListener('abort', onAbort, { once: true });
    const timeoutMs = options.connectTimeoutMs ?? CONNECT_TIMEOUT_MS;
    const timer = setTimeout(
      () => connection.#fail(new LakebaseError('TIMEOUT', `no Postgres session on ${where(options)} after ${timeoutMs} ms`)),
      timeoutMs,
    );
    try {
      await connection.#startup();
      return connection;
    } catch (error) {
      connection.destroy();
      throw error;
    } finally {
      clearTimeout(timer);
      options.signal?.removeEventListener('abort', onAbort);
    }
  }

  private constructor(options: PgConnectOptions) {
    this.#options = options;
    const reuseMemory = options.reuseMemory === true;
    this.#parser = new MessageParser({ limit: options.messageBytesMax ?? MESSAGE_BYTES_MAX, reuseMemory });
    const take = (chunk: Buffer): void => {
      try {
        this.#parser.push(chunk);
        this.#drain();
      } catch (error) {
        this.#fail(error);
      }
    };
    const receiving = reuseMemory ? { buffer: Buffer.allocUnsafeSlow(RECEIVE_BYTES), take } : undefined;
    this.#socket = openSocket(options.host, options.port, receiving);
    this.#socket.setKeepAlive(true, 30_000);
    if (receiving === undefined) this.#socket.on('data', take);
    this.#socket.on('error', (error) =>
      this.#fail(new LakebaseError('UNAVAILABLE', `connection to ${where(options)}: ${error.message}`, { cause: error })),
    );
    this.closed = new Promise((resolve) => {
      this.#socket.on('close', () => {
        this.#fail(new LakebaseError('UNAVAILABLE', `connection to ${where(options)}: closed by the server`));
        receiving?.buffer.fill(0);
        this.#parser.wipe();
        resolve(this.#ending ? undefined : this.#error);
      });
    });
  }

  /** Length of the cancel key: 4, or up to 256 with protocol 3.2. */
  get cancelKeyLength(): number {
    return this.#cancelKey.length;
  }

  /** Runs `sql` as one simple query; one result per statement. */
  query(sql: string): Promise<QueryResult[]> {
    return this.#queue.run(() => this.#query(sql));
  }

  async #query(sql: string): Promise<QueryResult[]> {
    const results: QueryResult[] = [];
    let columns: readonly Column[] = [];
    let rows: (string | null)[][] = [];
    let failure: PgError | undefined;
    await this.#exchange(encodeQuery(sql), (m, done) => {
      if (m.kind === 'rowDescription') columns = m.columns;
      else if (m.kind === 'dataRow') rows.push(m.values.map((v) => (v === null ? null : v.toString('utf8'))));
      else if (m.kind === 'commandComplete') {
        results.push({ columns, rows, tag: m.tag });
        columns = [];
        rows = [];
      } else if (m.kind === 'error') failure = new PgError(m.fields);
      else if (m.kind === 'copyIn' || m.kind === 'copyBoth') throw new ProtocolError('the query started a COPY; use startReplication');
      else if (m.kind === 'readyForQuery') done();
    });
    if (failure !== undefined) throw failure;
    return results;
  }

  /** START_REPLICATION PHYSICAL; resolves when the server has switched to streaming. */
  startReplication(
    start: { readonly startLsn: Lsn; readonly timeline?: number; readonly slot?: string },
    handlers: ReplicationHandlers,
  ): Promise<ReplicationStream> {
    const slot = start.slot === undefined ? '' : `SLOT "${start.slot.replaceAll('"', '""')}" `;
    const timeline = start.timeline === undefined ? '' : ` TIMELINE ${start.timeline}`;
    const sql = `START_REPLICATION ${slot}PHYSICAL ${formatLsn(start.startLsn)}${timeline}`;
    return new Promise((resolve, reject) => {
      // The queue is held until the stream ends, so that queries meanwhile wait instead of breaking it.
      this.#queue.run(() => this.#runStream(sql, handlers, resolve)).catch(reject);
    });
  }

  async #runStream(sql: string, handlers: ReplicationHandlers, started: (stream: ReplicationStream) => void): Promise<void> {
    let failure: PgError | undefined;
    let stopping = false;
    const ended = this.#exchange(encodeQuery(sql), (m, done) => {
      if (m.kind === 'copyBoth') {
        this.#stream = handlers;
        started(stream);
      } else if (m.kind === 'copyDone') {
        this.#stream = undefined;
        if (!stopping) this.#write(encodeCopyDone());
        stopping = true;
      } else if (m.kind === 'error') failure = new PgError(m.fields);
      else if (m.kind === 'readyForQuery') done();
    })
      .finally(() => (this.#stream = undefined))
      .then(() => {
        if (failure !== undefined) throw failure;
      });
    // Callers may watch `closed` instead.
    ended.catch(() => {});
    const stream: ReplicationStream = {
      sendStatus: (position) => this.#write(encodeStandbyStatus(position)),
      stop: () => {
        if (!stopping && this.#stream !== undefined) {
          stopping = true;
          this.#write(encodeCopyDone());
        }
        return ended;
      },
      ended,
    };
    await ended;
  }

  /** Asks the server to cancel what this session is running, over a connection of its own. */
  cancel(): Promise<void> {
    return new Promise((resolve) => {
      const socket = openSocket(this.#options.host, this.#options.port);
      socket.on('error', () => {});
      socket.on('close', () => resolve());
      socket.resume();
      socket.end(encodeCancelRequest(this.backendPid, this.#cancelKey));
    });
  }

  /** Closes in order. */
  async end(): Promise<void> {
    this.#ending = true;
    if (!this.#socket.destroyed) this.#socket.end(encodeTerminate());
    await this.closed;
  }

  destroy(): void {
    this.#ending = true;
    this.#socket.destroy();
  }

  async #startup(): Promise<void> {
    const o = this.#options;
    const parameters: [string, string][] = [['user', o.user]];
    if (o.database !== undefined) parameters.push(['database', o.database]);
    if (o.replication !== undefined) parameters.push(['replication', o.replication === 'physical' ? 'true' : 'database']);
    parameters.push(...Object.entries(o.parameters ?? {}));
    let scram: ScramClient | undefined;
    const password = (): string => {
      if (o.password === undefined) throw new LakebaseError('UNAUTHENTICATED', `${where(o)} wants a password for ${o.user}`);
      return o.password;
    };
    await this.#exchange(encodeStartupMessage(parameters, o.protocol), (m, done) => {
      switch (m.kind) {
        case 'authenticationOk':
          if (scram !== undefined && !scram.finished) throw new ProtocolError('the server skipped the end of SCRAM');
          return;
        case 'authenticationCleartext':
          this.#write(encodePassword(password()));
          return;
        case 'authenticationSasl':
          if (!m.mechanisms.includes(SCRAM_SHA_256)) throw new ProtocolError(`the server offers ${m.mechanisms.join(', ')} only`);
          scram = new ScramClient(password());
          this.#write(encodeSaslInitialResponse(SCRAM_SHA_256, scram.first()));
          return;
        case 'authenticationSaslContinue': {
          const text = m.data.toString('utf8');
          if (scram === undefined) throw new ProtocolError('SASL data before SASL began');
          return scram.continue(text).then((reply) => this.#write(encodeSaslResponse(reply)));
        }
        case 'authenticationSaslFinal':
          if (scram === undefined) throw new ProtocolError('SASL data before SASL began');
          scram.verify(m.data.toString('utf8'));
          return;
        case 'authenticationOther':
          throw new ProtocolError(`authentication method ${m.method} is not supported`);
        case 'backendKeyData':
          this.backendPid = m.pid;
          this.#cancelKey = Buffer.from(m.key);
          return;
        case 'error':
          throw new PgError(m.fields);
        case 'readyForQuery':
          done();
          return;
        default:
          return;
      }
    });
  }

  /** Sends a request and feeds every answer to `onMessage` until it calls `done`. */
  #exchange(request: Buffer, onMessage: (m: BackendMessage, done: () => void) => void | Promise<void>): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#error !== undefined) return reject(this.#error);
      const done = (): void => {
        this.#waiter = undefined;
        resolve();
      };
      this.#waiter = { onMessage: (m) => onMessage(m, done), reject };
      this.#write(request);
    });
  }

  #write(bytes: Buffer): void {
    if (!this.#socket.destroyed) this.#socket.write(bytes);
  }

  #drain(): void {
    while (!this.#held && this.#error === undefined) {
      const m = this.#parser.next();
      if (m === undefined) return;
      const wait = this.#dispatch(m.type, m.body);
      if (wait instanceof Promise) this.#hold(wait);
    }
  }

  /** Stops reading until `wait` settles. */
  #hold(wait: Promise<void>): void {
    this.#held = true;
    this.#socket.pause();
    wait.then(
      () => {
        this.#held = false;
        if (this.#error !== undefined) return;
        try {
          this.#drain();
          if (!this.#held) this.#socket.resume();
        } catch (error) {
          this.#fail(error);
        }
      },
      (error: unknown) => this.#fail(error),
    );
  }

  #dispatch(type: number, body: Buffer): void | Promise<void> {
    const stream = this.#stream;
    if (stream !== undefined && type === 0x64) {
      const m = decodeReplicationFromServer(body);
      return m.kind === 'xlogData' ? stream.onXLogData(m) : stream.onKeepalive?.(m);
    }
    const m = decodeBackend(type, body);
    if (m.kind === 'parameterStatus') {
      this.parameters.set(m.name, m.value);
      return;
    }
    if (m.kind === 'notice') {
      this.#options.onNotice?.(m.fields);
      return;
    }
    // After FATAL nothing follows but the end of the connection.
    if (m.kind === 'error' && m.fields.severity === 'FATAL') throw new PgError(m.fields);
    if (this.#waiter !== undefined) return this.#waiter.onMessage(m);
    if (m.kind === 'error') throw new PgError(m.fields);
  }

  #fail(cause: unknown): void {
    if (this.#error !== undefined) return;
    this.#error = cause instanceof Error ? cause : new LakebaseError('INTERNAL', errorMessage(cause));
    this.#socket.destroy();
    const waiter = this.#waiter;
    this.#waiter = undefined;
    waiter?.reject(this.#error);
  }
}

const where = (o: PgConnectOptions): string => (o.host.startsWith('/') ? unixSocketPath(o.host, o.port) : `${o.host}:${o.port}`);
