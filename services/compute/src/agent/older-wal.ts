/** WAL before the start LSN, fetched from safekeepers into pg_wal: a compute needs none of its own, but logical decoding begins at the slots'
 *  restart LSN. Only committed WAL is asked for: the start bundle at the same LSN was made from it. */
import type { PeerAddress } from '@lakebase/api';
import { LakebaseError, type Logger, errorMessage, isCode } from '@lakebase/base';
import { type Lsn, type ProjectUid, type TimelineId, WAL_SEGMENT_BYTES, formatLsn, segmentNumber } from '@lakebase/ids';
import { PgConnection } from '@lakebase/pg-wire';

/** No bytes for this long: the next member is asked. */
const SILENCE_MS = 5_000;

export interface OlderWalOptions {
  readonly members: readonly PeerAddress[];
  readonly project: ProjectUid;
  readonly timeline: TimelineId;
  readonly token: string;
  /** Oldest LSN needed; whole segments are fetched. */
  readonly from: Lsn;
  readonly to: Lsn;
  readonly write: (at: Lsn, bytes: Buffer) => void;
}

/** For slots of a start: WAL that is gone is said, and leaves it to Postgres to say which slots fail; the database is there. */
export async function fetchSlotWal(options: OlderWalOptions, log: Logger): Promise<void> {
  try {
    await fetchOlderWal(options);
    log.info({ from: formatLsn(options.from), to: formatLsn(options.to) }, 'WAL for logical replication slots is there');
  } catch (error) {
    if (isCode(error, 'NOT_FOUND')) return log.error({ err: errorMessage(error) }, 'WAL that logical replication slots need is gone');
    throw new LakebaseError('UNAVAILABLE', `cannot fetch the WAL that logical replication slots need: ${errorMessage(error)}`, {
      cause: error,
    });
  }
}

/** Throws NOT_FOUND when members have trimmed it, UNAVAILABLE when none answers. */
export async function fetchOlderWal(options: OlderWalOptions): Promise<void> {
  let position = (segmentNumber(options.from) * WAL_SEGMENT_BYTES) as Lsn;
  let last: unknown;
  for (const peer of options.members) {
    try {
      await copy(options, peer, position, (at) => {
        position = at;
      });
      return;
    } catch (error) {
      last = error; // the next one goes on from there
    }
  }
  throw new LakebaseError(
    isTrimmed(last) ? 'NOT_FOUND' : 'UNAVAILABLE',
    `no safekeeper gives WAL from ${formatLsn(position)}: ${errorMessage(last)}`,
    { cause: last },
  );
}

const isTrimmed = (error: unknown): boolean => /already been removed/.test(errorMessage(error));

async function copy(o: OlderWalOptions, peer: PeerAddress, from: Lsn, moved: (to: Lsn) => void): Promise<void> {
  const connection = await PgConnection.connect({
    host: peer.pgHost,
    port: peer.pgPort,
    user: 'compute',
    password: o.token,
    replication: 'physical',
    parameters: {
      application_name: 'compute',
      options: `-c lakebase.project=${o.project} -c lakebase.timeline=${o.timeline}`,
    },
    connectTimeoutMs: SILENCE_MS,
  });
  let position = from;
  let silence: NodeJS.Timeout | undefined;
  try {
    await new Promise<void>((resolve, reject) => {
      const fail = (error: unknown): void => reject(error instanceof Error ? error : new LakebaseError('UNAVAILABLE', String(error)));
      const heard = (): void => {
        clearTimeout(silence);
        silence = setTimeout(() => fail(new LakebaseError('TIMEOUT', `${peer.id} sends no WAL`)), SILENCE_MS);
      };
      heard();
      connection
        .startReplication(
          { startLsn: from, timeline: 1 },
          {
            onXLogData: (m) => {
              if (position >= o.to) return;
              heard();
              if (m.start !== position) return fail(new LakebaseError('CORRUPT', `${peer.id} sends WAL of ${formatLsn(m.start)}`));
              const keep = Math.min(m.data.length, o.to - position);
              o.write(position, m.data.subarray(0, keep));
              position = (position + keep) as Lsn;
              moved(position);
              if (position >= o.to) resolve();
            },
          },
        )
        .then((stream) => stream.ended.then(() => fail(new LakebaseError('UNAVAILABLE', `${peer.id} ended the copy early`)), fail), fail);
    });
  } finally {
    clearTimeout(silence);
    connection.destroy();
  }
}
