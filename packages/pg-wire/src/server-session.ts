/** The server half of one connection, for services of ours that speak the Postgres protocol: start-up, SCRAM, simple queries, CopyBoth.
 *
 *  Invariants:
 *  - Nothing but start-up and password messages is read before authentication, and those with small limits and one deadline.
 *  - Queries run one at a time, in order; while one runs, only CopyBoth input is processed.
 *  - Output respects backpressure where the caller awaits what it is given. */
import type { Socket } from 'node:net';
import { randomBytes } from 'node:crypto';
import { LakebaseError, type Logger, errorMessage, silentLogger } from '@lakebase/base';
import { ByteWriter } from '@lakebase/bytes';
import type { Lsn } from '@lakebase/ids';
import {
  type Column,
  appendDataRow,
  encodeAuthenticationOk,
  encodeAuthenticationSasl,
  encodeAuthenticationSaslContinue,
  encodeAuthenticationSaslFinal,
  encodeBackendKeyData,
  encodeCommandComplete,
  encodeCopyBothResponse,
  encodeCopyDone,
  encodeEmptyQueryResponse,
  encodeError,
  encodeParameterStatus,
  encodeReadyForQuery,
  encodeRowDescription,
} from './backend.ts';
import { PgError, ProtocolError, errorFieldsOf, fatal } from './errors.ts';
import { MessageParser, type WireMessage } from './framing.ts';
import { AUTH_MESSAGE_MAX, decodeFrontend, decodeSaslInitialResponse, decodeSaslResponse } from './frontend.ts';
import { type StandbyStatus, decodeReplicationFromClient, encodeKeepalive, encodeXLogDataHeader } from './replication.ts';
import { ScramServer } from './scram.ts';
import { type ScramVerifier, buildVerifier, mockVerifier } from './scram-verifier.ts';
import { type StartupMessage, StartupParser, encodeNegotiateProtocolVersion, needsNegotiation } from './startup.ts';

/** `passwords`: any of them will do, `session.matched` says which. `unknown`: refused, after the same exchange as a wrong password. */
export type AuthDecision = 'trust' | 'unknown' | { readonly passwords: readonly string[] } | { readonly verifier: ScramVerifier };

export interface PgServerOptions {
  readonly authenticate: (startup: StartupMessage) => AuthDecision | Promise<AuthDecision>;
  /** One simple query. Send results with the session's methods; throw to send an error. ReadyForQuery follows by itself. */
  readonly onQuery: (session: PgServerSession, sql: string) => Promise<void>;
  /** Values for ParameterStatus, beside what clients insist on. */
  readonly parameters?: Readonly<Record<string, string>>;
  /** Covers everything up to the end of authentication. */
  readonly authTimeoutMs?: number;
  readonly queryBytesMax?: number;
  readonly log?: Logger;
}

export interface CopyBothHandlers {
  readonly onStatus?: (status: StandbyStatus) => void;
}

/** The sending side of START_REPLICATION. */
export interface CopyBoth {
  /** Resolves when the socket takes more. `data` must stay unchanged until `written` is called (also when the connection failed). */
  sendXLogData(start: Lsn, walEnd: Lsn, data: Uint8Array, written?: () => void): Promise<void>;
  sendKeepalive(walEnd: Lsn, replyRequested: boolean): void;
  /** The client sent CopyDone, or the connection is gone: stop sending. */
  readonly ended: boolean;
  readonly whenEnded: Promise<void>;
  /** Sends CopyDone and waits for the client's. Call `session.complete` afterwards. */
  finish(): Promise<void>;
}

const AUTH_TIMEOUT_MS = 30_000;
const QUERY_BYTES_MAX = 1 << 20;
const MOCK_SECRET = randomBytes(32);
const DEFAULT_PARAMETERS = {
  server_version: '18.0',
  server_encoding: 'UTF8',
  client_encoding: 'UTF8',
  DateStyle: 'ISO, MDY',
  integer_datetimes: 'on',
  standard_conforming_strings: 'on',
  TimeZone: 'UTC',
};

export class PgServerSession {
  readonly socket: Socket;
  /** Aborted when the connection is gone. */
  readonly signal: AbortSignal;
  /** Index of the password that matched. */
  matched = 0;

  readonly #options: PgServerOptions;
  readonly #log: Logger;
  readonly #gone = new AbortController();
  readonly #startupParser = new StartupParser();
  readonly #parser: MessageParser;
  #startup: StartupMessage | undefined;
  #wake: (() => void) | undefined;
  #copy: { handlers: CopyBothHandlers; end: () => void; ended: boolean; clientDone: boolean } | undefined;
  #completed = false;
  #skipToSync = false;
  #authenticated = false;

  /** Serves `socket` until it closes. Never rejects; failures are reported to the client and logged. */
  static async serve(socket: Socket, options: PgServerOptions): Promise<void> {
    const session = new PgServerSession(socket, options);
    await session.#run();
  }

  private constructor(socket: Socket, options: PgServerOptions) {
    this.socket = socket;
    this.signal = this.#gone.signal;
    this.#options = options;
    this.#log = options.log ?? silentLogger;
    this.#parser = new MessageParser({ limit: AUTH_MESSAGE_MAX });
    socket.on('error', (error) => this.#log.debug({ err: error.message }, 'client connection failed'));
    socket.once('close', () => {
      this.#gone.abort(new LakebaseError('CLOSED', 'the client is gone'));
      this.#copy?.end();
      this.#wake?.();
    });
  }

  get startup(): StartupMessage {
    if (this.#startup === undefined) throw new LakebaseError('CONFLICT', 'no start-up message yet');
    return this.#startup;
  }

  /** One complete result: rows and command tag. */
  sendRows(columns: readonly Column[], rows: readonly (readonly (string | Uint8Array | null)[])[], tag = `SELECT ${rows.length}`): void {
    const w = new ByteWriter(1024);
    for (const row of rows) appendDataRow(w, row);
    this.#write(Buffer.concat([encodeRowDescription(columns), w.view()]));
    this.complete(tag);
  }

  complete(tag: string): void {
    this.#completed = true;
    this.#write(encodeCommandComplete(tag));
  }

  /** Switches to CopyBoth mode, inside `onQuery`. */
  copyBoth(handlers: CopyBothHandlers = {}): CopyBoth {
    if (this.#copy !== undefined) throw new LakebaseError('CONFLICT', 'already in COPY mode');
    let end!: () => void;
    const whenEnded = new Promise<void>((resolve) => (end = resolve));
    const copy = { handlers, end: () => {}, ended: this.signal.aborted, clientDone: false };
    copy.end = () => {
      copy.ended = true;
      end();
    };
    if (copy.ended) end();
    this.#copy = copy;
    this.#write(encodeCopyBothResponse());
    // Input that came while the query was starting waits in the parser, with the socket paused.
    queueMicrotask(() => this.#onData(Buffer.alloc(0)));
    this.socket.resume();
    return {
      sendXLogData: async (start, walEnd, data, written = () => {}) => {
        if (copy.ended) return written();
        this.socket.cork();
        this.socket.write(encodeXLogDataHeader(start, walEnd, data.length));
        const open = this.socket.write(data, () => written());
        this.socket.uncork();
        if (!open) await this.#drained();
      },
      sendKeepalive: (walEnd, replyRequested) => {
        if (!copy.ended) this.#write(encodeKeepalive(walEnd, replyRequested));
      },
      get ended() {
        return copy.ended;
      },
      whenEnded,
      finish: async () => {
        this.#write(encodeCopyDone());
        await whenEnded;
        this.#copy = undefined;
      },
    };
  }

  /** Ends the session with a FATAL report, for a service that stops. */
  terminate(message = 'terminating connection because the service is stopping', sqlstate = '57P01'): void {
    this.#write(encodeError({ severity: 'FATAL', sqlstate, message }));
    this.#copy?.end();
    this.socket.destroySoon();
  }

  #drained(): Promise<void> {
    return new Promise((resolve) => {
      if (this.socket.destroyed) return resolve();
      const done = (): void => {
        this.socket.off('drain', done);
        this.socket.off('close', done);
        resolve();
      };
      this.socket.on('drain', done);
      this.socket.on('close', done);
    });
  }

  #write(bytes: Uint8Array): void {
    if (!this.socket.destroyed && this.socket.writable) this.socket.write(bytes);
  }

  async #run(): Promise<void> {
    const timer = setTimeout(() => this.socket.destroy(), this.#options.authTimeoutMs ?? AUTH_TIMEOUT_MS);
    this.signal.addEventListener('abort', () => clearTimeout(timer), { once: true });
    try {
      this.#startup = await this.#receiveStartup();
      await this.#authenticate(this.#startup);
      clearTimeout(timer);
      this.#authenticated = true;
      await this.#serveQueries();
    } catch (error) {
      if (!this.signal.aborted) {
        const f = errorFieldsOf(error, 'FATAL');
        this.#log.info({ err: errorMessage(error) }, 'session ended with an error');
        this.#write(encodeError({ ...f, severity: 'FATAL' }));
        this.socket.end();
        // A client that never reads must not keep the socket.
        setTimeout(() => this.socket.destroy(), 1_000).unref();
      }
    } finally {
      clearTimeout(timer);
      if (!this.socket.destroyed && !this.socket.writableEnded) this.socket.end();
    }
  }

  #receiveStartup(): Promise<StartupMessage> {
    return new Promise((resolve, reject) => {
      const onData = (chunk: Buffer): void => {
        try {
          this.#startupParser.push(chunk);
          for (let p = this.#startupParser.next(); p !== undefined; p = this.#startupParser.next()) {
            if (p.kind === 'ssl' || p.kind === 'gssenc') this.#write(Buffer.from('N'));
            else if (p.kind === 'cancel') {
              this.socket.destroy();
              return;
            } else {
              this.socket.off('data', onData);
              const rest = this.#startupParser.takeRest();
              this.socket.on('data', (bytes) => this.#onData(bytes));
              if (rest.length > 0) this.#parser.push(rest);
              resolve(p);
              return;
            }
          }
        } catch (error) {
          reject(error);
        }
      };
      this.socket.on('data', onData);
      this.signal.addEventListener('abort', () => reject(this.signal.reason), { once: true });
    });
  }

  #onData(bytes: Buffer): void {
    try {
      this.#parser.push(bytes);
      // CopyBoth input is handled here, at once, because the query that owns it is still running.
      if (this.#copy !== undefined && !this.#copy.clientDone) this.#copyInput();
      else if (this.#wake !== undefined) this.#wake();
      else this.socket.pause();
    } catch (error) {
      this.#protocolFailure(error);
    }
  }

  #protocolFailure(error: unknown): void {
    this.#write(encodeError({ ...errorFieldsOf(error, 'FATAL'), severity: 'FATAL' }));
    this.socket.destroySoon();
    this.#copy?.end();
  }

  async #nextMessage(): Promise<WireMessage> {
    for (;;) {
      this.signal.throwIfAborted();
      const m = this.#parser.next();
      if (m !== undefined) return m;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        this.socket.resume();
      });
      this.#wake = undefined;
    }
  }

  async #authenticate(startup: StartupMessage): Promise<void> {
    const user = startup.parameters.get('user') ?? '';
    if (user === '') throw fatal('28000', 'no PostgreSQL user name specified in startup packet');
    if (needsNegotiation(startup)) this.#write(encodeNegotiateProtocolVersion(startup));
    const decision = await this.#options.authenticate(startup);
    if (decision !== 'trust') {
      const scram = new ScramServer({ verifiers: await verifiersOf(decision, user) });
      this.#write(encodeAuthenticationSasl(scram.mechanisms));
      const first = await this.#nextMessage();
      const { mechanism, data } = decodeSaslInitialResponse(first.type, first.body);
      this.#write(encodeAuthenticationSaslContinue(scram.first(mechanism, data)));
      const last = await this.#nextMessage();
      const outcome = scram.final(decodeSaslResponse(last.type, last.body));
      if (outcome === undefined) throw fatal('28P01', `password authentication failed for user "${user}"`);
      this.matched = outcome.matched;
      this.#write(encodeAuthenticationSaslFinal(outcome.serverFinal));
    }
    const parameters = { ...DEFAULT_PARAMETERS, ...this.#options.parameters };
    this.#write(
      Buffer.concat([
        encodeAuthenticationOk(),
        ...Object.entries(parameters).map(([k, v]) => encodeParameterStatus(k, v)),
        encodeBackendKeyData(process.pid, randomBytes(4)),
        encodeReadyForQuery('I'),
      ]),
    );
    this.#parser.setLimit(this.#options.queryBytesMax ?? QUERY_BYTES_MAX);
  }

  async #serveQueries(): Promise<void> {
    for (;;) {
      const { type, body } = await this.#nextMessage();
      const m = decodeFrontend(type, body);
      if (m.kind === 'terminate') return;
      if (m.kind === 'query') {
        if (!this.#skipToSync) await this.#runQuery(m.sql);
      } else if (m.kind === 'sync') {
        this.#skipToSync = false;
        this.#write(encodeReadyForQuery('I'));
      } else if (m.kind === 'other') {
        if (!this.#skipToSync)
          this.#write(encodeError({ severity: 'ERROR', sqlstate: '0A000', message: 'only simple queries are supported here' }));
        this.#skipToSync = true;
      }
      // Stray CopyData, CopyDone and CopyFail after an error in COPY mode are ignored, as the protocol wants.
    }
  }

  async #runQuery(sql: string): Promise<void> {
    this.#completed = false;
    try {
      await this.#options.onQuery(this, sql);
      if (!this.#completed) this.#write(encodeEmptyQueryResponse());
    } catch (error) {
      if (this.signal.aborted) throw error;
      if (!(error instanceof LakebaseError)) this.#log.error({ err: errorMessage(error), stack: (error as Error).stack }, 'query failed');
      const fields = errorFieldsOf(error);
      if (error instanceof PgError && fields.severity === 'FATAL') throw error;
      this.#write(encodeError(fields));
    } finally {
      this.#copy?.end();
      this.#copy = undefined;
    }
    this.#write(encodeReadyForQuery('I'));
  }

  #copyInput(): void {
    const copy = this.#copy;
    while (copy !== undefined && !copy.clientDone) {
      const raw = this.#parser.next();
      if (raw === undefined) return;
      const m = decodeFrontend(raw.type, raw.body);
      if (m.kind === 'copyData') {
        const status = decodeReplicationFromClient(m.data);
        if (status.kind === 'standbyStatus') copy.handlers.onStatus?.(status);
      } else if (m.kind === 'copyDone' || m.kind === 'copyFail') {
        copy.clientDone = true;
        copy.end();
      } else if (m.kind === 'terminate') {
        copy.clientDone = true;
        copy.end();
        this.socket.end();
      } else if (m.kind !== 'sync') throw new ProtocolError('unexpected message in COPY mode');
    }
  }

  /** Whether the client has proved who it is. */
  get authenticated(): boolean {
    return this.#authenticated;
  }
}

async function verifiersOf(decision: Exclude<AuthDecision, 'trust'>, user: string): Promise<ScramVerifier[]> {
  if (decision === 'unknown') return [mockVerifier(MOCK_SECRET, user)];
  if ('verifier' in decision) return [decision.verifier];
  const salt = randomBytes(16);
  return Promise.all(decision.passwords.map((password) => buildVerifier(password, { salt })));
}
