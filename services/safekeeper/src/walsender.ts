/** START_REPLICATION PHYSICAL: sends WAL as it becomes readable, keepalives in between, until the client or the timeline ends.
 *  Invariant: without a peer term nothing beyond the commit LSN is sent; with one, nothing once this member's term is another. */
import { LakebaseError, errorMessage, sleep } from '@lakebase/base';
import { wipeAndGiveBack } from '@lakebase/bytes';
import { type Lsn, type Term, formatLsn, segmentNumber, walFileName } from '@lakebase/ids';
import { type CopyBoth, PgError, type PgServerSession, type StandbyStatus } from '@lakebase/pg-wire';
import { isVoid, voidWal } from './void-wal.ts';
import { WalReader } from './wal-reader.ts';
import type { WalTimeline } from './wal-timeline.ts';

/** MAX_SEND_SIZE of stock walsenders. */
const CHUNK_BYTES = 128 * 1024;
/** Read at once: each frame on disk (at most 256 KiB) is opened for one read only. */
const READ_BYTES = 4 * CHUNK_BYTES;
const KEEPALIVE_MS = 10_000;
/** A reader of committed WAL that has caught up gets what came since at most this often: one message for many commits costs both ends far
 *  less than one each, and nothing on the commit path waits for it. After a pause the first bytes go out at once. */
const PACE_MS = 10;

export interface WalsenderOptions {
  readonly from: Lsn;
  readonly peerTerm?: Term;
  readonly onStatus?: (status: StandbyStatus) => void;
}

const nextTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

export async function sendWal(session: PgServerSession, timeline: WalTimeline, options: WalsenderOptions): Promise<void> {
  const { from, peerTerm } = options;
  // Stand-in bytes are for tools that begin at a segment start; a peer must never take them for WAL.
  const firstLsn = peerTerm === undefined ? WalReader.firstLsn(timeline) : timeline.firstLsn;
  const startLsn = peerTerm === undefined && firstLsn === (timeline.archive?.firstLsn ?? timeline.control.startLsn) ? firstLsn : (0 as Lsn);
  if (from < firstLsn && !isVoid(from, startLsn)) throw removed(from);
  if (from > timeline.flushLsn)
    throw new PgError({
      severity: 'ERROR',
      sqlstate: '55000',
      message: `requested starting point ${formatLsn(from)} is ahead of the WAL flush position of this server ${formatLsn(timeline.flushLsn)}`,
    });
  // Wakes the loop below; set again by every change while it is busy.
  let moved = true;
  let wake: () => void = () => {};
  const touch = (): void => {
    moved = true;
    wake();
  };
  const copy = session.copyBoth({
    onStatus: (status) => {
      options.onStatus?.(status);
      if (status.replyRequested) copy.sendKeepalive(end(), false);
    },
  });
  const end = (): Lsn => (peerTerm === undefined ? timeline.readableLsn : timeline.flushLsn);
  const unsubscribe = timeline.onMoved(touch);
  void copy.whenEnded.then(touch);
  const keepalive = setInterval(() => copy.sendKeepalive(end(), false), KEEPALIVE_MS);
  try {
    await loop(timeline, copy, { from, startLsn, peerTerm }, end, async () => {
      while (!moved && !copy.ended) await new Promise<void>((resolve) => (wake = resolve));
      moved = false;
    });
  } catch (error) {
    // In COPY mode an error report ends the stream; the session goes on.
    throw error instanceof LakebaseError ? error : new LakebaseError('INTERNAL', errorMessage(error), { cause: error });
  } finally {
    clearInterval(keepalive);
    unsubscribe();
  }
  if (session.signal.aborted) return;
  await copy.finish();
  session.complete('START_STREAMING');
}

interface Range {
  readonly from: Lsn;
  /** Bytes before it, in its segment, are stand-ins. */
  readonly startLsn: Lsn;
  readonly peerTerm: Term | undefined;
}

async function loop(timeline: WalTimeline, copy: CopyBoth, range: Range, end: () => Lsn, changed: () => Promise<void>): Promise<void> {
  const { startLsn, peerTerm } = range;
  let position = range.from;
  const reader = new WalReader(timeline);
  copy.whenEnded.then(
    () => reader.close(),
    () => reader.close(),
  );
  while (!copy.ended) {
    timeline.checkOpen();
    const bytes = isVoid(position, startLsn)
      ? voidWal(position, READ_BYTES, startLsn, timeline.control)
      : await readOr58P01(timeline, reader, position, peerTerm);
    if (bytes.length === 0) {
      await changed();
      continue;
    }
    const { length } = bytes;
    let unsent = length;
    for (let at = 0; at < length; at += CHUNK_BYTES) {
      const piece = bytes.subarray(at, at + CHUNK_BYTES);
      const pieceBytes = piece.length;
      // A copy of our own: no WAL stays behind in memory once it is sent.
      await copy.sendXLogData((position + at) as Lsn, end(), piece, () => {
        unsent -= pieceBytes;
        if (unsent === 0) wipeAndGiveBack(bytes);
        else piece.fill(0);
      });
    }
    position = (position + length) as Lsn;
    // A reader that catches up must not keep commits waiting.
    if (position < end()) await nextTurn();
    else if (peerTerm === undefined) await sleep(PACE_MS);
  }
}

async function readOr58P01(timeline: WalTimeline, reader: WalReader, position: Lsn, peerTerm: Term | undefined): Promise<Buffer> {
  try {
    return peerTerm === undefined ? await reader.read(position, READ_BYTES) : timeline.read(position, READ_BYTES, peerTerm);
  } catch (error) {
    if (error instanceof LakebaseError && error.code === 'NOT_FOUND') throw removed(position);
    throw error;
  }
}

const removed = (at: Lsn): PgError =>
  new PgError({
    severity: 'ERROR',
    sqlstate: '58P01',
    message: `requested WAL segment ${walFileName(segmentNumber(at))} has already been removed`,
  });
