/** Positions exchanged between members, one ndjson line of PeerStatus per change (GET /v1/peer-stream), both halves of it.
 *  A line is a fact that stays true, so the last one of each peer is kept when its connection is gone.
 *  Changes are put together: news after a quiet time goes out at once, then at most every 10 ms; a commit LSN alone, which peers compute
 *  themselves, waits up to 50 ms. */
import { type IncomingMessage, get } from 'node:http';
import type { Writable } from 'node:stream';
import type { PeerAddress, PeerStatus } from '@lakebase/api';
import { LakebaseError, type Logger, backoffDelay, errorMessage, sleep } from '@lakebase/base';
import { formatLsn, parseLsn, parseProjectUid, parseTerm, parseTimelineId } from '@lakebase/ids';
import type { MemberPosition } from '@lakebase/wal-quorum';
import type { WalTimeline } from './wal-timeline.ts';

const PACE_MS = 10;
const COALESCE_COMMIT_MS = 50;
const HEARTBEAT_MS = 5_000;
/** Nothing heard for this long means that the connection is dead. */
const SILENCE_MS = 3 * HEARTBEAT_MS;
const LINE_BYTES_MAX = 16 * 1024;
/** A reader that is this far behind is cut off: it will connect again and get the present state. */
const BACKLOG_BYTES_MAX = 8 * 1024 * 1024;

interface Sent {
  term: number;
  lastLogTerm: number;
  flushRecordLsn: number;
  commitLsn: number;
  generation: number;
}

/** Sends this member's positions to whoever listens. */
export class PeerFeed {
  readonly #out = new Set<Writable>();
  readonly #dirty = new Map<WalTimeline, Sent | undefined>();
  readonly #sent = new WeakMap<WalTimeline, Sent>();
  readonly #timelines: () => Iterable<WalTimeline>;
  readonly #heartbeat: NodeJS.Timeout;
  #timer: NodeJS.Timeout | undefined;
  #due = Number.POSITIVE_INFINITY;
  #lastFlush = 0;

  constructor(timelines: () => Iterable<WalTimeline>) {
    this.#timelines = timelines;
    this.#heartbeat = setInterval(() => this.#write('\n'), HEARTBEAT_MS).unref();
  }

  /** `timeline` may have changed. */
  touch(timeline: WalTimeline): void {
    if (this.#out.size === 0) return;
    this.#dirty.set(timeline, undefined);
    const before = this.#sent.get(timeline);
    const p = timeline.position;
    const news =
      before === undefined ||
      before.flushRecordLsn !== p.flushRecordLsn ||
      before.term !== p.term ||
      before.lastLogTerm !== p.lastLogTerm ||
      before.generation !== p.generation;
    const now = performance.now();
    const due = news ? Math.max(now, this.#lastFlush + PACE_MS) : now + COALESCE_COMMIT_MS;
    if (due >= this.#due) return;
    clearTimeout(this.#timer);
    this.#due = due;
    this.#timer = setTimeout(() => this.#flush(), due - now);
  }

  add(out: Writable): void {
    for (const timeline of this.#timelines()) out.write(this.#line(timeline));
    out.write('\n');
    this.#out.add(out);
    const remove = (): void => void this.#out.delete(out);
    out.on('close', remove);
    out.on('error', remove);
  }

  #flush(): void {
    this.#timer = undefined;
    this.#due = Number.POSITIVE_INFINITY;
    this.#lastFlush = performance.now();
    let text = '';
    for (const timeline of this.#dirty.keys()) if (!timeline.closed) text += this.#line(timeline);
    this.#dirty.clear();
    if (text !== '') this.#write(text);
  }

  #line(timeline: WalTimeline): string {
    const { term, lastLogTerm, flushRecordLsn, generation } = timeline.position;
    const { commitLsn } = timeline.state;
    this.#sent.set(timeline, { term, lastLogTerm, flushRecordLsn, commitLsn, generation });
    const status: PeerStatus = {
      project: timeline.project,
      timeline: timeline.timeline,
      term,
      lastLogTerm,
      flushRecordLsn: formatLsn(flushRecordLsn),
      generation,
      member: timeline.self,
      commitLsn: formatLsn(commitLsn),
      offloadedLsn: formatLsn(timeline.offloadedLsn),
      tailLsn: formatLsn(timeline.tailLsn),
      pagesLsn: formatLsn(timeline.pagesLsn),
      lineage: timeline.lineage,
    };
    return `${JSON.stringify(status)}\n`;
  }

  #write(text: string): void {
    for (const out of this.#out) {
      if (out.writableLength > BACKLOG_BYTES_MAX) {
        this.#out.delete(out);
        out.destroy();
      } else out.write(text);
    }
  }

  close(): void {
    clearInterval(this.#heartbeat);
    clearTimeout(this.#timer);
    for (const out of this.#out) out.destroy();
    this.#out.clear();
  }
}

export interface PeerListenerOptions {
  readonly peer: PeerAddress;
  readonly token: string;
  readonly log: Logger;
  readonly onStatus: (peerId: string, status: PeerStatus, position: MemberPosition) => void;
}

/** Follows one peer's feed for as long as it lives. */
export class PeerListener {
  readonly #options: PeerListenerOptions;
  readonly #stop = new AbortController();
  readonly #running: Promise<void>;
  connected = false;

  constructor(options: PeerListenerOptions) {
    this.#options = options;
    this.#running = this.#run();
  }

  get peerId(): string {
    return this.#options.peer.id;
  }

  stop(): Promise<void> {
    this.#stop.abort(new LakebaseError('CLOSED', 'stopping'));
    return this.#running;
  }

  async #run(): Promise<void> {
    const { peer, log } = this.#options;
    for (let attempt = 0; !this.#stop.signal.aborted; attempt++) {
      try {
        await this.#follow(() => {
          if (attempt > 0) log.info({ peer: peer.id }, 'peer is back');
          attempt = 0;
          this.connected = true;
        });
      } catch (error) {
        if (attempt === 0 && !this.#stop.signal.aborted) log.info({ peer: peer.id, err: errorMessage(error) }, 'peer is not there');
      }
      this.connected = false;
      await sleep(backoffDelay(attempt, { baseMs: 50, maxMs: 1_000 }), this.#stop.signal).catch(() => {});
    }
  }

  #follow(onOpen: () => void): Promise<void> {
    const { peer, token } = this.#options;
    return new Promise((resolve, reject) => {
      const request = get(`${peer.httpUrl}/v1/peer-stream`, {
        headers: { authorization: `Bearer ${token}` },
        signal: this.#stop.signal,
        agent: false,
      });
      request.setTimeout(SILENCE_MS, () => request.destroy(new Error('silent for too long')));
      request.on('error', reject);
      request.on('response', (response) => {
        response.on('error', reject);
        if (response.statusCode !== 200) {
          response.destroy();
          return reject(new Error(`HTTP ${response.statusCode}`));
        }
        onOpen();
        this.#lines(response, reject);
        response.on('close', () => resolve());
      });
    });
  }

  #lines(response: IncomingMessage, reject: (error: Error) => void): void {
    let rest = '';
    response.setEncoding('utf8');
    response.on('data', (chunk: string) => {
      const lines = (rest + chunk).split('\n');
      rest = lines.pop() ?? '';
      try {
        if (rest.length > LINE_BYTES_MAX) throw new LakebaseError('INVALID_ARGUMENT', 'line is too long');
        for (const line of lines) if (line !== '') this.#status(line);
      } catch (error) {
        response.destroy();
        reject(error instanceof Error ? error : new Error(String(error)));
      }
    });
  }

  #status(line: string): void {
    const raw = JSON.parse(line) as PeerStatus;
    const status: PeerStatus = { ...raw, project: parseProjectUid(raw.project), timeline: parseTimelineId(raw.timeline) };
    this.#options.onStatus(this.#options.peer.id, status, {
      term: parseTerm(raw.term),
      lastLogTerm: parseTerm(raw.lastLogTerm),
      flushRecordLsn: parseLsn(raw.flushRecordLsn),
      generation: raw.generation ?? 0,
    });
  }
}
