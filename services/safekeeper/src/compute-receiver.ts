/** Receives WAL from the compute of one term as a synchronous standby: connects, checks that it is the right compute, streams from the end
 *  of our log, reports every flush. Reconnects with back-off until its term is over or it is stopped.
 *  Invariant: a status update names only what is durable here in this term. */
import type { PeerAddress, SubscribeRequest } from '@lakebase/api';
import { type ErrorCode, LakebaseError, type Logger, backoffDelay, errorMessage, isCode, sleep } from '@lakebase/base';
import { type Lsn, type Term, formatLsn, parseTerm } from '@lakebase/ids';
import { PgConnection, PgError, type ReplicationStream } from '@lakebase/pg-wire';
import { mayStream, quorumCommit } from '@lakebase/wal-quorum';
import { copyFromPeer } from './peer-copy.ts';
import type { Feeder, WalTimeline } from './wal-timeline.ts';

export interface ReceiverOptions {
  readonly secret: string;
  /** By member. */
  readonly peers: () => readonly PeerAddress[];
  readonly log: Logger;
}

/** SQLSTATE of "requested WAL segment … has already been removed". */
const UNDEFINED_FILE = '58P01';
const BACKOFF_MAX_MS = 1_000;
const ENDS_FOR_GOOD: ReadonlySet<ErrorCode> = new Set(['FENCED', 'CLOSED', 'NOT_FOUND', 'KEY_REVOKED']);
/** A compute that is gone this long will not be back in its term; whoever starts another one subscribes us again. */
const GIVE_UP_MS = 60_000;

export class ComputeReceiver implements Feeder {
  readonly term: Term;
  readonly generation: number;
  readonly request: SubscribeRequest;
  readonly #timeline: WalTimeline;
  readonly #options: ReceiverOptions;
  readonly #log: Logger;
  readonly #stop = new AbortController();
  #connection: PgConnection | undefined;
  #stream: ReplicationStream | undefined;
  #running: Promise<unknown> | undefined;
  #ended = false;
  #hadStream = false;
  /** The last stream ended because its bytes could not be kept: a full disk does not get better within milliseconds. */
  #refused = false;

  constructor(timeline: WalTimeline, request: SubscribeRequest, options: ReceiverOptions) {
    this.#timeline = timeline;
    this.request = request;
    this.term = parseTerm(request.term);
    this.generation = request.configuration?.generation ?? timeline.configuration.generation;
    this.#options = options;
    this.#log = options.log.child({ timeline: timeline.timeline, term: this.term });
  }

  start(): void {
    this.#running = this.#run()
      .catch((error: unknown) => this.#log.error({ err: errorMessage(error) }, 'receiver ended'))
      .finally(() => (this.#ended = true));
  }

  /** True once it will not connect again. */
  get stopped(): boolean {
    return this.#stop.signal.aborted || this.#ended;
  }

  /** Ends the stream at once; bytes that were not durable yet are not acknowledged. */
  async stop(): Promise<void> {
    this.#stop.abort(new LakebaseError('CLOSED', 'the receiver was stopped'));
    this.#disconnect();
    await this.#running;
  }

  flushed(flushLsn: Lsn): void {
    this.#stream?.sendStatus({ write: flushLsn, flush: flushLsn, apply: flushLsn });
  }

  drop(error: LakebaseError): void {
    if (ENDS_FOR_GOOD.has(error.code)) this.#stop.abort(error);
    else this.#refused = true;
    this.#log.info({ code: error.code, reason: error.message }, 'stream from the compute dropped');
    this.#disconnect();
  }

  #disconnect(): void {
    this.#stream = undefined;
    if (this.#timeline.feeder === this) this.#timeline.feeder = undefined;
    this.#connection?.destroy();
    this.#connection = undefined;
  }

  async #run(): Promise<void> {
    const { signal } = this.#stop;
    let lastStream = performance.now();
    for (let attempt = 0; !signal.aborted; attempt++) {
      if (this.#timeline.term > this.term) return;
      if (performance.now() - lastStream > GIVE_UP_MS) return this.#log.info({}, 'the compute is gone; waiting to be subscribed again');
      try {
        await this.#streamOnce();
        this.#log.info({}, 'the compute ended the stream');
      } catch (error) {
        if (signal.aborted) break;
        const expected = isCode(error, 'UNAVAILABLE');
        this.#log[expected && attempt > 0 ? 'debug' : 'info']({ err: errorMessage(error), attempt }, 'no stream from the compute');
        if (error instanceof PgError && error.sqlstate === UNDEFINED_FILE) await this.#catchUp();
      } finally {
        if (this.#hadStream) {
          lastStream = performance.now();
          attempt = 0;
        }
        this.#hadStream = false;
        this.#disconnect();
        if (!this.#timeline.closed) this.#timeline.dropPending();
      }
      const delayMs = this.#refused ? BACKOFF_MAX_MS : backoffDelay(attempt, { baseMs: 25, maxMs: BACKOFF_MAX_MS });
      this.#refused = false;
      await sleep(delayMs, signal).catch(() => {});
    }
  }

  async #streamOnce(): Promise<void> {
    const { host, port, user, standbyName } = this.request;
    const timeline = this.#timeline;
    const connection = await PgConnection.connect({
      host,
      port,
      user,
      replication: 'physical',
      parameters: { application_name: standbyName },
      signal: this.#stop.signal,
      connectTimeoutMs: 5_000,
      // What arrives is copied into frames and the ring before the next message is looked at.
      reuseMemory: true,
    });
    this.#connection = connection;
    const [term] = await connection.query('SHOW lakebase.term');
    if (term?.rows[0]?.[0] !== String(this.term))
      throw new LakebaseError('CONFLICT', `the server there is of term ${term?.rows[0]?.[0]}, not ${this.term}`);
    if (this.request.configuration !== undefined) {
      // A server that counts by another configuration must not get our flush reports: it would take them for a majority's.
      const [generation] = await connection.query('SHOW lakebase.generation');
      if (generation?.rows[0]?.[0] !== String(this.generation))
        throw new LakebaseError('CONFLICT', `the server counts by configuration ${generation?.rows[0]?.[0]}, not ${this.generation}`);
    }
    const [identity] = await connection.query('IDENTIFY_SYSTEM');
    if (identity?.rows[0]?.[0] !== timeline.control.systemId.toString())
      throw new LakebaseError('CONFLICT', `the server there is system ${identity?.rows[0]?.[0]}, not ${timeline.control.systemId}`);
    this.#stop.signal.throwIfAborted();
    if (!mayStream(timeline.state, this.term, this.generation)) throw new LakebaseError('FENCED', `term ${this.term} is not current here`);
    timeline.flush();
    const startLsn = timeline.flushLsn;
    const stream = await connection.startReplication(
      { startLsn, timeline: 1 },
      {
        onXLogData: (m) => timeline.appendFromCompute(this.term, m.start, m.data, this.generation),
        onKeepalive: (m) => {
          if (m.replyRequested) this.flushed(timeline.flushLsn);
        },
      },
    );
    this.#stop.signal.throwIfAborted();
    this.#stream = stream;
    this.#hadStream = true;
    timeline.feeder = this;
    this.flushed(timeline.flushLsn);
    this.#log.info({ startLsn: formatLsn(startLsn) }, 'streaming from the compute');
    await stream.ended;
  }

  /** The compute recycled what we lack: take what is committed from whichever peer has most. */
  async #catchUp(): Promise<void> {
    const positions = this.#timeline.peers;
    const to = quorumCommit(new Map(positions).set(this.#timeline.self, this.#timeline.position), this.#timeline.configuration).lsn;
    const donors = this.#options
      .peers()
      .filter((p) => positions.get(p.id)?.term === this.term && (positions.get(p.id)?.flushRecordLsn ?? 0) >= to)
      .sort((a, b) => (positions.get(b.id)?.flushRecordLsn ?? 0) - (positions.get(a.id)?.flushRecordLsn ?? 0));
    for (const donor of donors) {
      try {
        await copyFromPeer(this.#timeline, { secret: this.#options.secret, donor, to, term: this.term, signal: this.#stop.signal });
        this.#log.info({ donor: donor.id, to: formatLsn(to) }, 'caught up from a peer');
        return;
      } catch (error) {
        this.#log.warn({ donor: donor.id, err: errorMessage(error) }, 'cannot catch up from this peer');
      }
    }
  }
}
