/** Copies WAL from another member into a timeline over the replication protocol. Used while adopting a term (uncommitted WAL of that
 *  term's donor) and to catch up with committed WAL that the compute no longer has. Durable when it returns. */
import { type PeerAddress, internalToken } from '@lakebase/api';
import { LakebaseError } from '@lakebase/base';
import { type Lsn, type Term, formatLsn, parseLsn } from '@lakebase/ids';
import { PgConnection } from '@lakebase/pg-wire';
import type { WalTimeline } from './wal-timeline.ts';

export interface PeerCopyOptions {
  readonly secret: string;
  readonly donor: PeerAddress;
  readonly to: Lsn;
  /** The term in which both sides copy. */
  readonly term: Term;
  readonly signal?: AbortSignal;
}

/** No bytes for this long ends the copy. */
const SILENCE_MS = 20_000;

function connect(timeline: WalTimeline, donor: PeerAddress, secret: string, more: string, signal: AbortSignal): Promise<PgConnection> {
  const { project, timeline: id, lineage } = timeline;
  return PgConnection.connect({
    host: donor.pgHost,
    port: donor.pgPort,
    user: 'safekeeper',
    password: internalToken(secret, 'service'),
    replication: 'physical',
    parameters: {
      application_name: timeline.memberId,
      options: `-c lakebase.project=${project} -c lakebase.timeline=${id} -c lakebase.lineage=${lineage}${more}`,
    },
    signal,
  });
}

/** Committed WAL [from, to) of a peer, in memory: at most a segment. */
export async function fetchCommitted(
  timeline: WalTimeline,
  options: { readonly secret: string; readonly donor: PeerAddress; readonly from: Lsn; readonly to: Lsn },
): Promise<Buffer> {
  const { secret, donor, from, to } = options;
  const connection = await connect(timeline, donor, secret, '', AbortSignal.timeout(SILENCE_MS));
  const timer = setTimeout(() => connection.destroy(), SILENCE_MS);
  try {
    await checkSystem(connection, timeline, donor);
    const bytes = Buffer.allocUnsafeSlow(to - from);
    await new Promise<void>((resolve, reject) => {
      let at: number = from;
      connection
        .startReplication(
          { startLsn: from, timeline: 1 },
          {
            onXLogData: (m) => {
              if (m.start !== at) return reject(new LakebaseError('CORRUPT', `${donor.id} sent WAL of another place`));
              at += m.data.copy(bytes, at - from, 0, Math.min(m.data.length, to - at));
              if (at >= to) resolve();
            },
          },
        )
        .then((stream) => stream.ended)
        .then(() => reject(new LakebaseError('UNAVAILABLE', `${donor.id} ended the copy early`)))
        .catch(reject);
      connection.closed.then((error) => reject(error ?? new LakebaseError('UNAVAILABLE', `${donor.id} closed the connection`)), reject);
    });
    return bytes;
  } finally {
    clearTimeout(timer);
    connection.destroy();
  }
}

export async function copyFromPeer(timeline: WalTimeline, options: PeerCopyOptions): Promise<void> {
  const { donor, to, term, secret } = options;
  if (timeline.flushLsn >= to) return;
  const silence = new AbortController();
  const signal = options.signal === undefined ? silence.signal : AbortSignal.any([silence.signal, options.signal]);
  const connection = await connect(timeline, donor, secret, ` -c lakebase.peer=1 -c lakebase.term=${term}`, signal);
  const onAbort = (): void => connection.destroy();
  signal.addEventListener('abort', onAbort, { once: true });
  let timer: NodeJS.Timeout | undefined;
  const heard = (): void => {
    clearTimeout(timer);
    timer = setTimeout(() => silence.abort(new LakebaseError('TIMEOUT', `${donor.id} sends no WAL`)), SILENCE_MS);
  };
  try {
    heard();
    await checkSystem(connection, timeline, donor);
    await beginWherePossible(connection, timeline, term);
    await new Promise<void>((resolve, reject) => {
      const fail = (error: unknown): void => reject(error instanceof Error ? error : new LakebaseError('INTERNAL', String(error)));
      connection
        .startReplication(
          { startLsn: timeline.flushLsn, timeline: 1 },
          {
            onXLogData: (m) => {
              heard();
              const keep = Math.min(m.data.length, to - m.start);
              timeline.appendFromPeer(term, m.start, m.data.subarray(0, keep));
              if (m.start + keep >= to) {
                timeline.flush();
                resolve();
              }
            },
          },
        )
        .then((stream) => stream.ended.then(() => fail(new LakebaseError('UNAVAILABLE', `${donor.id} ended the copy early`)), fail), fail);
      connection.closed.then(
        (error) => fail(error ?? silence.signal.reason ?? new LakebaseError('UNAVAILABLE', `${donor.id} closed the connection`)),
        fail,
      );
    });
  } catch (error) {
    timeline.dropPending();
    throw error;
  } finally {
    clearTimeout(timer);
    signal.removeEventListener('abort', onAbort);
    connection.destroy();
  }
}

async function checkSystem(connection: PgConnection, timeline: WalTimeline, donor: PeerAddress): Promise<void> {
  const [identity] = await connection.query('IDENTIFY_SYSTEM');
  const systemId = identity?.rows[0]?.[0];
  if (systemId !== timeline.control.systemId.toString())
    throw new LakebaseError('CONFLICT', `${donor.id} serves system ${systemId}, this timeline is of ${timeline.control.systemId}`);
}

/** Where the donor has trimmed what we would need next, our copy begins at its first record: everything before is in the pageserver. */
async function beginWherePossible(connection: PgConnection, timeline: WalTimeline, term: Term): Promise<void> {
  const [answer] = await connection.query('SHOW lakebase.first_record');
  const match = /^(\S+) (\S+) (\S+)$/.exec(answer?.rows[0]?.[0] ?? '');
  if (match === null) throw new LakebaseError('INTERNAL', 'the peer does not say where its WAL begins');
  const [firstLsn, recordLsn, lastRecordLsn] = match.slice(1).map(parseLsn) as [Lsn, Lsn, Lsn];
  if (timeline.flushLsn >= firstLsn) return;
  if (timeline.term !== term) throw new LakebaseError('FENCED', `the term is ${timeline.term} now`);
  timeline.restartAt(recordLsn, lastRecordLsn);
}

export const describeCopy = (from: Lsn, to: Lsn, donor: PeerAddress): Record<string, unknown> => ({
  from: formatLsn(from),
  to: formatLsn(to),
  donor: donor.id,
});
