/** GetPage as clients see it: pages with a known number of records to apply, over the real listener, at depth 1 and 64. */
import { connect } from 'node:net';
import { type Frame, FrameReceiver, MSG, encodeHello, encodeRequest, internalToken } from '@lakebase/api';
import { LakebaseError } from '@lakebase/base';
import { BLCKSZ, type ForkNumber, type Lsn, MAX_LSN, type RelTag, parseProjectUid, parseTimelineId } from '@lakebase/ids';
import { ENTRY_IMAGE, type Entry, encodeKey, relPages } from '@lakebase/layers';
import { TEST_PROJECT, TEST_TIMELINE } from './testing.ts';
import type { Timeline } from './timeline.ts';

export interface PageRequestAt {
  readonly tag: RelTag;
  readonly block: number;
  readonly lsn: Lsn;
}
export interface PageFigures {
  readonly requests: number;
  readonly perSecond: number;
  readonly medianUs: number;
  readonly p99Us: number;
}

/** Pages of relation forks and the LSNs at which exactly `records` changes lie on top of an image (or of the record that made the page).
 *  Each page is named once, so that no answer helps the next. */
export function pagesWithRecords(timeline: Timeline, records: number, limit: number): PageRequestAt[] {
  const found: PageRequestAt[] = [];
  for (const id of timeline.catalog.relations()) {
    const s = timeline.catalog.series.get(id);
    if (s.fork !== 0) continue;
    const tag: RelTag = { spc: s.spc, db: s.db, rel: s.rel, fork: s.fork as ForkNumber };
    const blocks = timeline.catalog.blocks(id);
    for (let block = 0; block < blocks && found.length < limit; block++) {
      const entries: Entry[] = [];
      if (!timeline.collect(encodeKey(relPages(tag), block), timeline.lastRecordLsn, 0 as Lsn, entries)) continue;
      // Oldest last: an image applies nothing, a record that makes the page counts as one.
      const last = entries.length - 1;
      const at = last - (entries[last]?.kind === ENTRY_IMAGE ? records : records - 1);
      const entry = entries[at];
      // Another change at the same LSN would come along.
      if (at > last || entry === undefined || entries[at - 1]?.lsn === entry.lsn) continue;
      found.push({ tag, block, lsn: entry.lsn });
    }
  }
  return found;
}

export interface AskOptions {
  readonly timeline?: string;
  /** Between an answer and the next request. */
  readonly pauseMs?: number;
  /** So many requests go first, and do not count: who asks is compiled then. */
  readonly warmUp?: number;
}

/** Larger than any answer to a request for one page. */
const ANSWER_BYTES = 1 << 16;

/** Sends `requests` in order, `depth` of them at any time. */
export async function askPages(
  port: number,
  secret: string,
  requests: readonly PageRequestAt[],
  depth: number,
  options: AskOptions = {},
): Promise<PageFigures> {
  const { timeline = TEST_TIMELINE, pauseMs = 0, warmUp = 0 } = options;
  const sent = new Float64Array(requests.length);
  const taken = new Float64Array(requests.length);
  let [next, answered] = [0, 0];
  const send = (): void => {
    const request = requests[next];
    if (request === undefined) return;
    sent[next] = performance.now();
    const { tag, block, lsn } = request;
    socket.write(encodeRequest({ type: 'getPages', id: next++, tag, block, count: 1, requestLsn: lsn, notModifiedSince: 0 as Lsn }));
  };
  let start = 0;
  let onFrame: (frame: Frame) => void = () => {};
  // Every answer into the same memory: what a collector would have to do here would be taken for the server's.
  const answer = Buffer.allocUnsafeSlow(ANSWER_BYTES);
  const received = new FrameReceiver(
    ANSWER_BYTES,
    (frame) => onFrame(frame),
    (bytes) => answer.subarray(0, bytes),
  );
  const socket = connect({
    host: '127.0.0.1',
    port,
    onread: {
      buffer: () => received.space,
      callback: (bytes) => {
        received.filled(bytes);
        return true;
      },
    },
  });
  socket.setNoDelay(true);
  await new Promise<void>((resolve, reject) => {
    socket.on('error', reject);
    onFrame = (frame) => {
      if (frame.type === MSG.HELLO_OK) {
        start = performance.now();
        for (let i = 0; i < depth; i++) send();
        return;
      }
      if (frame.type !== MSG.PAGES || frame.payload.length !== 2 + BLCKSZ) return reject(new LakebaseError('INTERNAL', 'a request failed'));
      taken[answered++] = performance.now() - (sent[frame.id] as number);
      if (answered === requests.length) resolve();
      else if (pauseMs > 0) setTimeout(send, pauseMs);
      else send();
    };
    const identity = { project: parseProjectUid(TEST_PROJECT), timeline: parseTimelineId(timeline) };
    socket.write(encodeHello({ token: internalToken(secret, 'service'), ...identity }));
  });
  const seconds = (performance.now() - start) / 1_000;
  socket.destroy();
  const counted = taken.subarray(Math.min(warmUp, taken.length - 1)).sort();
  const at = (q: number): number => Math.round((counted[Math.min(counted.length - 1, Math.floor(counted.length * q))] as number) * 1_000);
  return { requests: requests.length, perSecond: Math.round(requests.length / seconds), medianUs: at(0.5), p99Us: at(0.99) };
}

/** `count` random blocks of a relation at the head, always the same ones. */
export function randomPages(tag: RelTag, blocks: number, count: number): PageRequestAt[] {
  let seed = 1;
  const random = (): number => (seed = (Math.imul(seed, 1_103_515_245) + 12_345) & 0x7fff_ffff);
  return Array.from({ length: count }, () => ({ tag, block: random() % blocks, lsn: MAX_LSN }));
}
