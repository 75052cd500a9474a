/** How far the WAL of a timeline in the object store reaches: read from a record boundary on, record by record (docs/protocols/wal-recovery.md). For a
 *  timeline that no safekeeper holds any more, so the node that is asked need not have it.
 *  Invariant: the answer is the end of a record all of whose bytes came out of frames whose tags held, with a checksum that holds, behind a record
 *  that it names. */
import type { ArchiveEnd, ArchiveEndRequest } from '@lakebase/api';
import { type Logger, errorMessage, isCode } from '@lakebase/base';
import { type Lsn, type ProjectUid, type TimelineId, WAL_SEGMENT_BYTES, formatLsn, lsn, parseLsn } from '@lakebase/ids';
import type { ProjectKeys } from '@lakebase/keys';
import type { ObjectStore } from '@lakebase/object-store';
import { walPrefix } from '@lakebase/object-store';
import { type DecodedRecord, RM_XACT_ID, WalDecoder } from '@lakebase/pg-format';
import { lineagesFromJson } from '@lakebase/wal-quorum';
import { WalArchive } from '@lakebase/wal-store';
import { majorOf } from './void-wal.ts';

export interface ArchiveEndOptions {
  readonly store: ObjectStore;
  readonly keys: ProjectKeys;
  readonly scratchDir: string;
  readonly log: Logger;
}

const PIECE_BYTES = 256 * 1024;
/** XLOG_XACT_OPMASK of xl_info, and the two that commit. */
const XACT_OPERATION = 0x70;
const XACT_COMMIT = 0x00;
const XACT_COMMIT_PREPARED = 0x30;
/** 2000-01-01, where Postgres counts from, in Unix milliseconds. */
const POSTGRES_EPOCH_MS = 946_684_800_000;
const nextTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

export async function archiveEnd(
  options: ArchiveEndOptions,
  project: ProjectUid,
  timeline: TimelineId,
  request: ArchiveEndRequest,
): Promise<ArchiveEnd> {
  const { store, keys } = options;
  await keys.ready();
  const lineages = lineagesFromJson(request.lineages);
  const newest = lineages.at(-1) as (typeof lineages)[number];
  const archive = new WalArchive({ ...options, project, timeline, startLsn: newest.startLsn, lineages });
  const from = parseLsn(request.from);
  const decoder = new WalDecoder({
    startLsn: from,
    prevLsn: parseLsn(request.prevRecordLsn),
    major: majorOf(request.pgVersion),
    systemId: BigInt(request.systemId),
  });
  const reader = archive.reader();
  let stored: Lsn = from;
  let committed: number | undefined;
  let problem: string | null = null;
  try {
    for (;;) {
      const bytes = await reader.read(stored, PIECE_BYTES);
      stored = lsn(stored + bytes.length);
      decoder.push(bytes);
      for (let record = decoder.next(); record !== undefined; record = decoder.next()) committed = commitTime(record) ?? committed;
      await nextTurn();
    }
  } catch (error) {
    if (isCode(error, 'CORRUPT') || isCode(error, 'UNSUPPORTED')) problem = errorMessage(error);
    else if (!isCode(error, 'NOT_FOUND')) throw error;
  } finally {
    reader.close();
  }
  const { endLsn, lastRecordLsn } = decoder;
  decoder.wipe();
  if (problem === null) {
    let behind = await lastStoredByte(store, walPrefix(project, timeline, newest.number));
    for await (const tail of archive.trailers(lsn(0))) behind = lsn(Math.max(behind, tail.header.end));
    if (behind > stored)
      problem = `there is no WAL at ${formatLsn(stored)} in the object store, but there is up to ${formatLsn(behind)} behind it`;
  }
  return {
    endLsn: formatLsn(endLsn),
    lastRecordLsn: formatLsn(lastRecordLsn),
    lastCommitTime: committed === undefined ? null : new Date(committed).toISOString(),
    problem,
  };
}

/** Unix milliseconds. */
function commitTime({ rmid, info, buf, mainOffset, mainLength }: DecodedRecord): number | undefined {
  const operation = info & XACT_OPERATION;
  if (rmid !== RM_XACT_ID || (operation !== XACT_COMMIT && operation !== XACT_COMMIT_PREPARED) || mainLength < 8) return undefined;
  const ms = POSTGRES_EPOCH_MS + Number(buf.readBigInt64LE(mainOffset) / 1000n);
  return Number.isFinite(ms) && Math.abs(ms) < 8.64e15 ? ms : undefined;
}

/** Where complete objects end, by their names: a list, as a hole cannot be seen by looking for one byte after the other. */
async function lastStoredByte(store: ObjectStore, prefix: string): Promise<Lsn> {
  let end = 0;
  for (let after: string | undefined; ; ) {
    const page = await store.list(prefix, after === undefined ? {} : { after });
    for (const { key } of page.objects) {
      const match = /^([0-9a-f]{16})-([1248])$/.exec(key.slice(prefix.length));
      if (match !== null) end = Math.max(end, Number.parseInt(match[1] as string, 16) + Number(match[2]) * WAL_SEGMENT_BYTES);
    }
    after = page.next;
    if (after === undefined) return lsn(end);
  }
}
