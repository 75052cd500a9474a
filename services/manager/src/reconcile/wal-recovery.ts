/** Brings a timeline's WAL back from the object store under new members, when too few of its members are left (docs/protocols/wal-recovery.md).
 *  Invariants: done unasked only when every member of the old set has lost its disk; nothing is decided before the compare-and-swap, and all that is
 *  decided is in that one transaction; where the new WAL begins is never before what the pageserver has. */
import type { WalTimelineStatus } from '@lakebase/api';
import { LakebaseError, type Logger, isCode } from '@lakebase/base';
import { type Lsn, type ProjectUid, type Term, formatLsn, parseLsn, parseTerm } from '@lakebase/ids';
import {
  type Configuration,
  type MemberState,
  type RecoveryVerdict,
  firstTermOf,
  memberAhead,
  nodeOf,
  recoveredConfiguration,
  recoveredMembers,
  recoveryVerdict,
  stateOfHolding,
  votersOf,
} from '@lakebase/wal-quorum';
import { type FarEnd, type FarPageserver, ignoreNotFound } from '../far-end.ts';
import type { Database } from '../metadata/database.ts';
import { endpointsOfProject } from '../store/endpoints.ts';
import * as store from '../store/membership.ts';
import { placementOf } from '../store/placements.ts';

export interface RecoveryContext {
  readonly db: Database;
  readonly far: FarEnd;
  readonly log: Logger;
  readonly placements: { serving(project: ProjectUid): Promise<FarPageserver> };
}

export interface MemberSight {
  readonly id: string;
  readonly state: MemberState;
  readonly flushLsn: string | null;
  /** Known there as committed. */
  readonly commitLsn: string | null;
  /** The object store has its committed WAL, or gets it without anybody's order. */
  readonly offloads: boolean;
}

export interface RecoveryReport extends RecoveryVerdict {
  readonly project: string;
  readonly timeline: string;
  readonly configuration: number;
  readonly members: readonly MemberSight[];
  /** What is known of the end of the data; null where that could not be found out. */
  readonly pageLsn: string | null;
  readonly walEndLsn: string | null;
  /** Everything up to here is there afterwards, whatever comes behind is lost. */
  readonly startLsn: string | null;
  readonly lastCommitTime: string | null;
  /** Damage or a hole at which the WAL in the store ends. */
  readonly problem: string | null;
}

interface Found extends Pick<RecoveryReport, 'pageLsn' | 'walEndLsn' | 'startLsn' | 'lastCommitTime' | 'problem'> {
  readonly startLsn: string;
  readonly prevRecordLsn: string;
}

const UPLOAD_MS = 120_000;
const SCAN_MS = 600_000;

export class WalRecovery {
  readonly #c: RecoveryContext;

  constructor(context: RecoveryContext) {
    this.#c = context;
  }

  /** What is there, without changing anything. */
  async report(row: store.ConfigurationRow, configuration: Configuration): Promise<RecoveryReport> {
    const { members, unasked, refusal } = await this.#survey(row, configuration);
    const base = { project: row.project_uid, timeline: row.timeline_id, configuration: row.generation, members, unasked };
    try {
      const { client } = await this.#c.placements.serving(row.project_uid);
      const status = await client.status(row.project_uid, row.timeline_id);
      const found = await this.#find(row, status.lastRecordLsn, status.prevRecordLsn);
      return { ...base, ...found, refusal: refusal ?? aheadOf(members, found.startLsn) };
    } catch (error) {
      const why = error instanceof LakebaseError ? error.message : String(error);
      return { ...base, refusal: refusal ?? why, pageLsn: null, walEndLsn: null, startLsn: null, lastCommitTime: null, problem: null };
    }
  }

  /** True: done. False: it is not for us to do unasked. Throws what stands in the way. */
  async carryOut(row: store.ConfigurationRow, configuration: Configuration, by: string, acceptLoss: boolean): Promise<boolean> {
    const { db, log } = this.#c;
    const { members, unasked, refusal } = await this.#survey(row, configuration);
    if (!unasked && !acceptLoss) return false;
    if (refusal !== null) throw new LakebaseError('CONFLICT', refusal);
    await this.#stopComputes(row);
    const lineage = configuration.generation + 1;
    const pages = await this.#seal(row, lineage);
    const found = await this.#find(row, pages.lastRecordLsn, pages.prevRecordLsn);
    if (found.problem !== null && !acceptLoss)
      throw new LakebaseError('CORRUPT', `the WAL in the object store ends at ${found.startLsn}: ${found.problem}; ${BY_HAND}`);
    const ahead = aheadOf(members, found.startLsn);
    if (ahead !== null) throw new LakebaseError('CONFLICT', ahead);
    const next = recoveredMembers(
      configuration,
      statesOf(members),
      this.#c.far.nodes.map((n) => n.id),
    );
    const entry: store.LineageEntry = {
      number: lineage,
      startLsn: found.startLsn,
      prevRecordLsn: found.prevRecordLsn,
      pageLsn: found.pageLsn as string,
      walEndLsn: found.walEndLsn as string,
      lastCommitTime: found.lastCommitTime,
      time: new Date().toISOString(),
      by,
    };
    const done = await db.transaction(async (tx) => {
      const to = recoveredConfiguration(configuration, next);
      if (!(await store.swapConfiguration(tx, row.timeline_id, configuration.generation, to))) return false;
      await store.beginLineage(tx, row.timeline_id, entry);
      for (const id of votersOf(configuration)) await store.dismissMember(tx, row.timeline_id, id);
      for (const { id, absent } of next) {
        await store.placeMember(tx, row.timeline_id, row.project_uid, nodeOf(id), id);
        if (absent) await store.loseMember(tx, row.timeline_id, nodeOf(id), id);
      }
      return true;
    });
    if (done)
      log.error(
        { project: row.project_uid, timeline: row.timeline_id, ...entry },
        `a branch had lost its WAL quorum and was brought back from the object store: everything up to ${entry.startLsn} is there` +
          `${entry.lastCommitTime === null ? '' : ` (last commit seen: ${entry.lastCommitTime})`}; what was committed after that is LOST`,
      );
    return done;
  }

  /** Who is there, and whether that permits anything. */
  async #survey(row: store.ConfigurationRow, configuration: Configuration): Promise<{ members: MemberSight[] } & RecoveryVerdict> {
    const members = await Promise.all(votersOf(configuration).map((id) => this.#look(row, id)));
    return { members, ...recoveryVerdict(configuration, statesOf(members)) };
  }

  async #look(row: store.ConfigurationRow, id: string): Promise<MemberSight> {
    const { project_uid: project, timeline_id: timeline } = row;
    const nothing = { id, flushLsn: null, commitLsn: null, offloads: false };
    const client = this.#c.far.safekeeper(nodeOf(id));
    try {
      if (client === undefined) return { ...nothing, state: 'silent' };
      const node = await client.node();
      if (node.lost.some((l) => l.timeline === timeline)) return { ...nothing, state: 'data lost' };
      try {
        const status = await client.status(project, timeline);
        if (status.member === id) return sightOf(id, status, firstTermOf(store.lineagesOf(row)));
        // Another member lives there now, perhaps on the same disk.
        const { notes } = await client.configuration(project, timeline);
        return { ...nothing, state: notes?.includes(id) === false ? 'disk lost' : 'data lost' };
      } catch (error) {
        // Locked, or anything else that may pass, says nothing of the data.
        return { ...nothing, state: isCode(error, 'NOT_FOUND') ? 'disk lost' : 'silent' };
      }
    } catch {
      return { ...nothing, state: 'silent' };
    }
  }

  /** What could still write. One that is starting gets no majority of the members of before. */
  async #stopComputes(row: store.ConfigurationRow): Promise<void> {
    const { db, far } = this.#c;
    const endpoints = new Set(
      (await endpointsOfProject(db, row.project_uid)).filter((e) => e.timeline_id === row.timeline_id).map((e) => e.uid),
    );
    const { computes } = await far.computeHost.list();
    for (const compute of computes)
      if (endpoints.has(compute.endpointId) && compute.state !== 'STOPPED')
        await ignoreNotFound(far.computeHost.stop(compute.computeId, 'immediate'));
  }

  /** Ends ingest, and puts all that was ingested into the store. */
  async #seal(row: store.ConfigurationRow, lineage: number): Promise<{ lastRecordLsn: string; prevRecordLsn: string | undefined }> {
    const { db, placements } = this.#c;
    const { project_uid: project, timeline_id: timeline } = row;
    const placed = await placementOf(db, project);
    if (placed !== undefined && placed.owner !== placed.serving)
      throw new LakebaseError('UNAVAILABLE', 'the project is being moved to another pageserver');
    const { client } = await placements.serving(project);
    // Also looks for it in the store: without a base that is made of it there is nothing to begin from, and none may be made anew.
    const before = await client.status(project, timeline);
    if (before.state !== 'ACTIVE') throw new LakebaseError('UNAVAILABLE', `its pages cannot be used: ${before.error ?? before.state}`);
    // Whatever comes of this attempt, the pageserver is told the truth again.
    await store.forgetAnnounced(db, timeline);
    await client.create(project, timeline, {
      pgVersion: row.pg_version,
      systemId: row.system_id,
      safekeepers: [],
      walLineage: lineage,
    });
    await client.upload(project, UPLOAD_MS);
    const status = await client.status(project, timeline);
    const uploaded = status.remoteConsistentLsn === undefined ? 0 : parseLsn(status.remoteConsistentLsn);
    if (status.state !== 'ACTIVE' || status.walLineage !== lineage || uploaded < parseLsn(status.lastRecordLsn))
      throw new LakebaseError('UNAVAILABLE', 'its pages are not in the object store yet');
    return { lastRecordLsn: status.lastRecordLsn, prevRecordLsn: status.prevRecordLsn };
  }

  /** Reads the WAL in the store from the pages on. */
  async #find(row: store.ConfigurationRow, from: string, prevRecordLsn: string | undefined): Promise<Found> {
    const { far } = this.#c;
    if (prevRecordLsn === undefined) throw new LakebaseError('UNSUPPORTED', 'the pageserver does not say where its last record begins');
    const body = {
      systemId: row.system_id,
      pgVersion: row.pg_version,
      lineages: store.lineagesOf(row).map(({ number, startLsn }) => ({ number, startLsn })),
      from,
      prevRecordLsn,
    };
    let last: unknown = new LakebaseError('UNAVAILABLE', 'no safekeeper answers');
    for (const { id } of far.nodes) {
      try {
        const end = await far.safekeeper(id)?.archiveEnd(row.project_uid, row.timeline_id, body, SCAN_MS);
        if (end === undefined) continue;
        const { endLsn, lastRecordLsn, lastCommitTime, problem } = end;
        return { pageLsn: from, walEndLsn: endLsn, startLsn: endLsn, prevRecordLsn: lastRecordLsn, lastCommitTime, problem };
      } catch (error) {
        last = error;
      }
    }
    throw last;
  }
}

export const BY_HAND = 'if nothing better can be had: lakebase storage recover-wal <project> --accept-loss';

const statesOf = (members: readonly MemberSight[]): Map<string, MemberState> => new Map(members.map(({ id, state }) => [id, state]));

function sightOf(id: string, s: WalTimelineStatus, firstTerm: Term): MemberSight {
  const holding = {
    damaged: s.damaged !== null,
    term: parseTerm(s.term),
    historyEntries: s.termHistory.length,
    startLsn: parseLsn(s.startLsn),
    flushLsn: parseLsn(s.flushLsn),
  };
  const commit = Math.min(parseLsn(s.commitLsn), parseLsn(s.flushRecordLsn)) as Lsn;
  const offloads = parseLsn(s.firstLsn ?? s.startLsn) <= parseLsn(s.offloadedLsn ?? s.startLsn);
  return { id, state: stateOfHolding(holding, firstTerm), flushLsn: s.flushLsn, commitLsn: formatLsn(commit), offloads };
}

/** A member that is left knows of committed WAL that the store does not have yet. */
function aheadOf(members: readonly MemberSight[], startLsn: string): string | null {
  const sights = members.map((m) => ({ ...m, commitLsn: m.commitLsn === null ? null : parseLsn(m.commitLsn) }));
  const ahead = memberAhead(sights, parseLsn(startLsn));
  if (ahead === undefined) return null;
  return `${ahead.id} holds committed WAL up to ${formatLsn(ahead.commitLsn as Lsn)}, which it is putting into the object store (that has it up to ${startLsn}): wait a minute and try again`;
}
