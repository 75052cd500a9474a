/** Follows a timeline's WAL: a physical replication client of one of its safekeepers, on to the next one when that fails.
 *  Invariants: WAL of one lineage only is ingested, the one that was said last (docs/protocols/wal-recovery.md); WAL is asked for from lastRecordLsn on, so nothing is skipped or ingested twice; a safekeeper shows committed WAL only.
 *  The last record LSN is reported as written; as flushed and applied what the safekeepers may forget: what the object store has (remote-consistent),
 *  or without one what this disk has. While the disk is full nothing is ingested and the connection is kept. */
import { LakebaseError, type Logger, backoffDelay, errorMessage, failpoint, isCode, sleep } from '@lakebase/base';
import type { PeerAddress } from '@lakebase/api';
import { type Lsn, formatLsn } from '@lakebase/ids';
import { PgConnection, type ReplicationStream } from '@lakebase/pg-wire';
import type { Timeline } from './timeline.ts';

const STATUS_INTERVAL_MS = 1_000;
/** Reports after which a safekeeper that says nothing is asked for a sign of life, and after which it is given up: another one has the same WAL, so
 *  one that hangs, or whose machine is gone without a word, must not hold up the starts of computes. Reports are counted, not time: after
 *  a pause of our own what has arrived is read before the next report. */
const ASK_AFTER = 2;
const GIVE_UP_AFTER = 5;
/** A damaged stream may be one safekeeper's fault: this many tries at the same LSN before the timeline counts as broken. */
const CORRUPT_TRIES = 6;
/** Ingest counts as behind while the sender has this much more. */
const BEHIND_BYTES = 4 << 20;

export interface WalReceiverOptions {
  readonly safekeepers: readonly PeerAddress[];
  readonly lineage: number;
  readonly password: string;
  /** WAL before it is not needed any more, whatever happens to this machine. */
  readonly durableLsn: () => Lsn;
  /** A promise to wait for before more is ingested: the disk is full. */
  readonly room: () => Promise<void> | undefined;
  /** Between two reports; by default a second. */
  readonly statusIntervalMs?: number;
}

export class WalReceiver {
  readonly #timeline: Timeline;
  readonly #options: WalReceiverOptions;
  readonly #log: Logger;
  readonly #stop = new AbortController();
  readonly #done: Promise<void>;
  #safekeepers: readonly PeerAddress[];
  #lineage: number;
  /** The stream that is followed, and the way to end it. */
  #following: Promise<void> | undefined;
  #drop: (() => void) | undefined;
  #next = 0;
  connectedTo: string | undefined;
  /** End of WAL at the sender, as last heard. */
  senderLsn = 0 as Lsn;

  constructor(timeline: Timeline, options: WalReceiverOptions) {
    this.#timeline = timeline;
    this.#safekeepers = options.safekeepers;
    this.#lineage = options.lineage;
    this.#options = options;
    this.#log = timeline.log;
    this.#done = this.#run();
  }

  set safekeepers(list: readonly PeerAddress[]) {
    this.#safekeepers = list;
  }

  /** When it resolves nothing of another lineage is ingested any more. */
  async changeLineage(lineage: number): Promise<void> {
    if (lineage === this.#lineage) return;
    this.#lineage = lineage;
    this.#drop?.();
    await this.#following?.catch(() => {});
  }

  async stop(): Promise<void> {
    this.#stop.abort(new LakebaseError('CLOSED', 'the pageserver is shutting down'));
    await this.#done;
  }

  async #run(): Promise<void> {
    let failures = 0;
    let corrupt = { lsn: -1, tries: 0 };
    while (!this.#stop.signal.aborted && this.#timeline.broken === undefined) {
      const peer = this.#safekeepers[this.#next++ % Math.max(1, this.#safekeepers.length)];
      const before = this.#timeline.lastRecordLsn;
      try {
        if (peer === undefined) throw new LakebaseError('CONFIG', 'the timeline has no safekeepers');
        this.#following = this.#follow(peer);
        await this.#following;
      } catch (error) {
        if (this.#stop.signal.aborted || this.#timeline.broken !== undefined) break;
        if (isCode(error, 'CORRUPT')) {
          const lsn = this.#timeline.lastRecordLsn;
          corrupt = { lsn, tries: corrupt.lsn === lsn ? corrupt.tries + 1 : 1 };
          if (corrupt.tries >= CORRUPT_TRIES) this.#timeline.breakIngest(error);
        }
        this.#log.warn(
          { safekeeper: peer?.id, err: errorMessage(error), lastRecordLsn: formatLsn(this.#timeline.lastRecordLsn) },
          'WAL stream ended; trying the next safekeeper',
        );
      }
      failures = this.#timeline.lastRecordLsn > before ? 0 : failures + 1;
      await sleep(backoffDelay(failures, { baseMs: 20, maxMs: 2_000 }), this.#stop.signal).catch(() => {});
    }
  }

  async #follow(peer: PeerAddress): Promise<void> {
    const t = this.#timeline;
    const lineage = this.#lineage;
    const connection = await PgConnection.connect({
      host: peer.pgHost,
      port: peer.pgPort,
      user: 'pageserver',
      password: this.#options.password,
      replication: 'physical',
      parameters: {
        application_name: 'pageserver',
        options: `-c lakebase.project=${t.project} -c lakebase.timeline=${t.id} -c lakebase.lineage=${lineage}`,
      },
      connectTimeoutMs: 5_000,
      signal: this.#stop.signal,
      reuseMemory: true,
    });
    let onEnd = (): void => {};
    const ended = new Promise<void>((resolve) => (onEnd = resolve));
    const onAbort = (): void => {
      onEnd();
      connection.destroy();
    };
    this.#stop.signal.addEventListener('abort', onAbort, { once: true });
    this.#drop = onAbort;
    const check = (): void => {
      this.#stop.signal.throwIfAborted();
      if (lineage !== this.#lineage) throw new LakebaseError('UNAVAILABLE', `WAL of lineage ${this.#lineage} is followed now`);
    };
    /** Reports since the last message. */
    let silent = 0;
    let receiving = false;
    let ticker: NodeJS.Timeout | undefined;
    let stream: ReplicationStream | undefined;
    let ingesting: Promise<void> = Promise.resolve();
    const report = (replyRequested = false): void => {
      const flush = this.#options.durableLsn();
      stream?.sendStatus({ write: t.lastRecordLsn, flush, apply: flush, replyRequested });
    };
    const decoder = t.newDecoder();
    try {
      ticker = setInterval(() => {
        // Silence of our own making is none.
        if (!receiving && ++silent > GIVE_UP_AFTER) {
          this.#log.warn({ safekeeper: peer.id }, 'the safekeeper does not answer');
          connection.destroy();
        } else report(silent >= ASK_AFTER);
      }, this.#options.statusIntervalMs ?? STATUS_INTERVAL_MS);
      check();
      const start = t.lastRecordLsn;
      let expected: number = start;
      stream = await connection.startReplication(
        { startLsn: start, timeline: 1 },
        {
          onXLogData: async (message) => {
            receiving = true;
            this.senderLsn = message.walEnd;
            if (message.start !== expected)
              throw new LakebaseError(
                'UNAVAILABLE',
                `the safekeeper sent WAL from ${formatLsn(message.start)} where ${formatLsn(expected as Lsn)} follows`,
              );
            for (
              let room = this.#options.room();
              room !== undefined && !this.#stop.signal.aborted && lineage === this.#lineage;
              room = this.#options.room()
            ) {
              await Promise.race([room, ended]);
            }
            await failpoint('pageserver.ingest.before-piece');
            check();
            expected += message.data.length;
            decoder.push(message.data);
            ingesting = t.ingestFrom(decoder, message.walEnd - expected > BEHIND_BYTES);
            await ingesting;
            receiving = false;
            silent = 0;
          },
          onKeepalive: (message) => {
            silent = 0;
            this.senderLsn = message.walEnd;
            if (message.replyRequested) report();
          },
        },
      );
      this.connectedTo = peer.id;
      this.#log.info({ safekeeper: peer.id, startLsn: formatLsn(start) }, 'following WAL');
      await stream.ended;
      throw new LakebaseError('UNAVAILABLE', 'the safekeeper ended the stream');
    } finally {
      clearInterval(ticker);
      this.#drop = undefined;
      this.connectedTo = undefined;
      this.#stop.signal.removeEventListener('abort', onAbort);
      connection.destroy();
      // The connection may fail while a piece is still being ingested; a second stream must not begin beside it.
      await ingesting.catch(() => {});
      decoder.wipe();
    }
  }
}
