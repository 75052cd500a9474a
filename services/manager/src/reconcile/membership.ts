/** Replaces members of timelines for good (docs/protocols/membership.md): sees which disks are there, and drives each change a step at a time.
 *  Every round begins from the metadata and from what the safekeepers answer, so a Manager that was killed at any step goes on, and a step that was
 *  done already is done again without harm. */
import type { ConfigureRequest, PeerAddress, WalTimelineStatus } from '@lakebase/api';
import { LakebaseError, SerialQueue, errorMessage, isCode, sleep } from '@lakebase/base';
import { type TimelineId, parseLsn, parseTerm } from '@lakebase/ids';
import {
  type Configuration,
  type MemberReport,
  abortReplacement,
  beginReplacement,
  describeConfiguration,
  finishProblem,
  finishReplacement,
  historyFromJson,
  lastLogTerm,
  majorityOf,
  memberIdOf,
  nodeOf,
  votersOf,
} from '@lakebase/wal-quorum';
import type { FarEnd } from '../far-end.ts';
import type { Database } from '../metadata/database.ts';
import * as store from '../store/membership.ts';
import { setBranchStart, walMembers } from '../store/projects.ts';
import { BY_HAND, type RecoveryContext, type RecoveryReport, WalRecovery } from './wal-recovery.ts';

export type MembershipContext = RecoveryContext;

export const toConfiguration = (row: Pick<store.ConfigurationRow, 'generation' | 'members' | 'new_members'>): Configuration => ({
  generation: row.generation,
  members: row.members,
  newMembers: row.new_members,
});

/** Where the members of a configuration are, by member id. */
export function addressesOf(far: FarEnd, configuration: Configuration): PeerAddress[] {
  return votersOf(configuration).flatMap((id) => {
    const node = far.nodes.find((n) => n.id === nodeOf(id));
    return node === undefined ? [] : [{ ...node, id }];
  });
}

/** Whom a compute of this timeline elects and streams to. */
export async function walOf(
  { db, far }: Pick<MembershipContext, 'db' | 'far'>,
  timeline: TimelineId,
): Promise<{ safekeepers: readonly PeerAddress[]; walConfiguration?: Configuration }> {
  const row = await store.storedConfiguration(db, timeline);
  if (row === undefined) return { safekeepers: far.safekeepers };
  const walConfiguration = toConfiguration(row);
  return { safekeepers: addressesOf(far, walConfiguration), walConfiguration };
}

/** Ids of the members of the old set that are not known to have lost their data. */
async function membersLeft(db: Database, timeline: TimelineId, { members }: Configuration): Promise<string[]> {
  const rows = await walMembers(db, timeline);
  return members.filter((id) => rows.some((m) => m.member_id === id && m.wanted && !m.lost));
}

/** For a compute that is to start: UNAVAILABLE while too few members are left to elect it. */
export async function walForStart(c: Pick<MembershipContext, 'db' | 'far'>, timeline: TimelineId): ReturnType<typeof walOf> {
  const wal = await walOf(c, timeline);
  if (wal.walConfiguration === undefined) return wal;
  const left = await membersLeft(c.db, timeline, wal.walConfiguration);
  const all = wal.walConfiguration.members.length;
  if (left.length < majorityOf(wal.walConfiguration.members))
    throw new LakebaseError(
      'UNAVAILABLE',
      `${all - left.length} of the ${all} safekeepers of this branch have lost their disks; when all have, its WAL comes back from the object store by itself; ${BY_HAND}`,
    );
  return wal;
}

/** A change that is close to its end is waited for this long within one round. */
const STEPS_MAX = 50;
const STEP_MS = 100;
const AT_ONCE = 4;
/** Services that are starting are waited for within one round. */
const RECOVERY_TRIES = 10;
const RECOVERY_RETRY_MS = 500;

export class Membership {
  readonly #c: MembershipContext;
  /** Nodes that answered in this round. */
  readonly #present = new Set<string>();
  /** What members told under a joint configuration some time ago: the goal of those that join. */
  readonly #earlier = new Map<string, { generation: number; reports: ReadonlyMap<string, MemberReport> }>();
  readonly #copying = new Set<string>();
  readonly #problems = new Map<string, string>();
  readonly #recovery: WalRecovery;
  /** A round, or an administrator's order: one at a time. */
  readonly #turns = new SerialQueue();

  constructor(context: MembershipContext) {
    this.#c = context;
    this.#recovery = new WalRecovery(context);
  }

  get present(): ReadonlySet<string> {
    return this.#present;
  }
  /** Why a change is not done yet, by timeline. */
  get problems(): ReadonlyMap<string, string> {
    return this.#problems;
  }

  round(signal: AbortSignal): Promise<void> {
    return this.#turns.run(() => this.#round(signal));
  }

  /** What a recovery of this timeline's WAL would bring back, or, with `acceptLoss`, that recovery. */
  recoverWal(timeline: TimelineId, by: string, acceptLoss: boolean): Promise<RecoveryReport & { readonly done: boolean }> {
    return this.#turns.run(async () => {
      const row = await store.configurationOf(this.#c.db, timeline);
      if (row === undefined) throw new LakebaseError('NOT_FOUND', 'the branch has no WAL yet');
      const configuration = toConfiguration(row);
      const report = await this.#recovery.report(row, configuration);
      if (!acceptLoss) return { ...report, done: false };
      const done = await this.#recovery.carryOut(row, configuration, by, true);
      if (done) await this.#settle(timeline, AbortSignal.timeout(STEPS_MAX * STEP_MS));
      return { ...report, done };
    });
  }

  async #round(signal: AbortSignal): Promise<void> {
    await this.#look();
    await this.#fillStarts();
    const rows = await store.unsettled(this.#c.db);
    const work = rows.values();
    const one = async (): Promise<void> => {
      for (const row of work) {
        if (signal.aborted) return;
        try {
          await this.#settle(row.timeline_id, signal);
        } catch (error) {
          this.#problem(row.timeline_id, errorMessage(error));
        }
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, one));
  }

  /** Which nodes answer, with which disks, and what they have lost. */
  async #look(): Promise<void> {
    const { db, far, log } = this.#c;
    await Promise.all(
      far.nodes.map(async ({ id }) => {
        try {
          const node = await far.safekeeper(id)?.node();
          if (node === undefined || typeof node.incarnation !== 'string') return;
          const gone = await db.transaction((tx) => store.seeDisk(tx, id, node.incarnation));
          if (gone > 0)
            log.error({ safekeeper: id, members: gone }, 'a safekeeper has lost its disk: new members take the place of its old ones');
          for (const { timeline, member } of node.lost ?? [])
            if (await store.loseMember(db, timeline, id, member))
              log.error({ safekeeper: id, timeline, member }, 'a safekeeper has lost a timeline: a new member takes its place');
          this.#present.add(id);
        } catch {
          this.#present.delete(id);
        }
      }),
    );
  }

  /** The pageserver knows where a branch begins. */
  async #fillStarts(): Promise<void> {
    for (const { timeline_id: timeline, project_uid: project } of await store.withoutStart(this.#c.db)) {
      try {
        const status = await (await this.#c.placements.serving(project)).client.status(project, timeline);
        if (status.state === 'ACTIVE') await setBranchStart(this.#c.db, timeline, status.startLsn, status.startPrevRecordLsn);
      } catch (error) {
        this.#problem(timeline, errorMessage(error));
      }
    }
  }

  async #settle(timeline: TimelineId, signal: AbortSignal): Promise<void> {
    let tried = false;
    for (let step = 0; step < STEPS_MAX && !signal.aborted; step++) {
      const row = await store.configurationOf(this.#c.db, timeline);
      if (row === undefined) return;
      const configuration = toConfiguration(row);
      const left = await membersLeft(this.#c.db, timeline, configuration);
      const short = left.length < majorityOf(configuration.members);
      if (short && !tried) {
        tried = true;
        if (await this.#recover(row, configuration, signal)) continue;
      }
      if (configuration.newMembers === null) {
        if (!row.told) await this.#tell(row, configuration);
        if (short) {
          if (await this.#someBack(row, configuration)) continue;
          return;
        }
        if (!(await this.#begin(row, configuration))) return;
      } else if (await this.#advance(row, configuration)) continue;
      await sleep(STEP_MS, signal).catch(() => {});
    }
  }

  #problem(timeline: string, text: string): void {
    if (this.#problems.get(timeline) !== text) this.#c.log.warn({ timeline, problem: text }, 'a member of a timeline is not replaced yet');
    this.#problems.set(timeline, text);
  }

  /** Too few members are left for the ordinary way. */
  async #recover(row: store.ConfigurationRow, configuration: Configuration, signal: AbortSignal): Promise<boolean> {
    for (let attempt = 1; ; attempt++) {
      try {
        if (await this.#recovery.carryOut(row, configuration, 'manager', false)) return true;
        this.#problem(row.timeline_id, `too few members are left, and not all disks are known to be gone; ${BY_HAND}`);
        return false;
      } catch (error) {
        this.#problem(row.timeline_id, errorMessage(error));
        const mayPass = isCode(error, 'UNAVAILABLE') || isCode(error, 'TIMEOUT');
        if (!mayPass || attempt === RECOVERY_TRIES || signal.aborted) return false;
        await sleep(RECOVERY_RETRY_MS, signal).catch(() => {});
      }
    }
  }

  async #someBack(row: store.ConfigurationRow, { members }: Configuration): Promise<boolean> {
    const lost = (await walMembers(this.#c.db, row.timeline_id)).filter((m) => m.wanted && m.lost && members.includes(m.member_id));
    for (const { member_id: member } of lost) if (await this.#isBack(row, member)) return true;
    return false;
  }

  // ---- steps

  /** Starts the next change when a member has to go. False: nothing to do, or nobody to take its place. */
  async #begin(row: store.ConfigurationRow, configuration: Configuration): Promise<boolean> {
    const { db, far, log } = this.#c;
    const members = await walMembers(db, row.timeline_id);
    const leaving = members.find((m) => m.wanted && (m.lost || m.evict) && configuration.members.includes(m.member_id));
    if (leaving === undefined) {
      this.#problems.delete(row.timeline_id);
      return false;
    }
    if (leaving.lost && !leaving.evict && (await this.#isBack(row, leaving.member_id))) return true;
    const taken = new Set(configuration.members.map(nodeOf));
    const same = leaving.lost && !leaving.evict && this.#present.has(leaving.safekeeper_id) ? leaving.safekeeper_id : undefined;
    // A copy that is still to be removed there must be gone first.
    const dirty = new Set(members.filter((m) => !m.wanted).map((m) => m.safekeeper_id));
    const node = same ?? far.nodes.find((n) => this.#present.has(n.id) && !taken.has(n.id) && !dirty.has(n.id))?.id;
    if (node === undefined) {
      this.#problem(row.timeline_id, `no safekeeper is free to take the place of ${leaving.member_id}`);
      return false;
    }
    const joining = memberIdOf(node, configuration.generation + 1);
    const joint = beginReplacement(configuration, leaving.member_id, joining);
    const done = await db.transaction(async (tx) => {
      if (!(await store.swapConfiguration(tx, row.timeline_id, configuration.generation, joint))) return false;
      await store.placeMember(tx, row.timeline_id, row.project_uid, node, joining);
      return true;
    });
    if (done) log.info({ timeline: row.timeline_id, configuration: describeConfiguration(joint) }, 'replacing a member');
    return done;
  }

  /** One look at a change under way: tells everybody, helps the new member along, and ends the change when it may. True: done at once, go on. */
  async #advance(row: store.ConfigurationRow, joint: Configuration): Promise<boolean> {
    const { timeline_id: timeline } = row;
    const joining = (joint.newMembers ?? []).find((id) => !joint.members.includes(id)) as string;
    const leaving = joint.members.find((id) => joint.newMembers?.includes(id) === false) as string;
    const place = (await walMembers(this.#c.db, timeline)).find((m) => m.member_id === joining);
    if (place === undefined || place.lost) return this.#abort(row, joint, joining, leaving, true);
    const statuses = await this.#tell(row, joint);
    // The disk of before is in its machine again, with all it ever promised.
    if (nodeOf(leaving) === nodeOf(joining) && statuses.has(leaving)) return this.#abort(row, joint, joining, leaving, false);
    const reports = new Map([...statuses].map(([id, status]) => [id, reportOf(status)] as const));
    const before = this.#earlier.get(timeline);
    const earlier = before?.generation === joint.generation ? before.reports : reports;
    const problem = finishProblem(joint, reports, earlier);
    if (problem === null) return this.#finish(row, joint, joining, leaving);
    this.#problem(timeline, problem);
    // A goal that too few have told is of no use later on.
    if (!problem.includes('old members')) this.#earlier.set(timeline, { generation: joint.generation, reports: earlier });
    this.#copy(row, joining, statuses);
    return false;
  }

  /** A member that was missed answers, whole: its disk was away for a while. */
  async #isBack(row: store.ConfigurationRow, member: string): Promise<boolean> {
    const { db, far, log } = this.#c;
    try {
      const status = await far.safekeeper(nodeOf(member))?.status(row.project_uid, row.timeline_id);
      if (status?.member !== member) return false;
    } catch {
      return false;
    }
    await store.restoreMember(db, row.timeline_id, nodeOf(member), member, false);
    log.warn({ timeline: row.timeline_id, member }, 'a member that was lost is back with its data');
    return true;
  }

  async #abort(row: store.ConfigurationRow, joint: Configuration, joining: string, leaving: string, lost: boolean): Promise<boolean> {
    const back = abortReplacement(joint);
    const { timeline_id: timeline } = row;
    const done = await this.#c.db.transaction(async (tx) => {
      if (!(await store.swapConfiguration(tx, timeline, joint.generation, back))) return false;
      if (nodeOf(leaving) === nodeOf(joining)) await store.restoreMember(tx, timeline, nodeOf(joining), leaving, lost);
      else await store.dismissMember(tx, timeline, joining);
      return true;
    });
    if (done)
      this.#c.log.warn({ timeline, configuration: describeConfiguration(back) }, 'a change is given up: back to the members of before');
    return done;
  }

  async #finish(row: store.ConfigurationRow, joint: Configuration, joining: string, leaving: string): Promise<boolean> {
    const final = finishReplacement(joint);
    const done = await this.#c.db.transaction(async (tx) => {
      if (!(await store.swapConfiguration(tx, row.timeline_id, joint.generation, final))) return false;
      await store.setJoined(tx, row.timeline_id, joining);
      await store.dismissMember(tx, row.timeline_id, leaving);
      return true;
    });
    if (!done) return false;
    this.#earlier.delete(row.timeline_id);
    this.#problems.delete(row.timeline_id);
    this.#c.log.info({ timeline: row.timeline_id, configuration: describeConfiguration(final) }, 'a member was replaced');
    return true;
  }

  /** Every member that answers takes the configuration over; the new one is made. */
  async #tell(row: store.ConfigurationRow, configuration: Configuration): Promise<Map<string, WalTimelineStatus>> {
    const { far, log } = this.#c;
    const { timeline_id: timeline, project_uid: project } = row;
    const voters = votersOf(configuration);
    const nodes = far.nodes.filter((n) => voters.some((id) => nodeOf(id) === n.id));
    const told = new Map<string, WalTimelineStatus>();
    await Promise.all(
      voters.map(async (id) => {
        try {
          const body = { configuration, nodes, make: await this.#make(row, configuration, id) };
          const status = await far.safekeeper(nodeOf(id))?.configure(project, timeline, body);
          if (status?.member !== id) return;
          told.set(id, status);
          if (body.make !== null && configuration.newMembers === null) await store.setJoined(this.#c.db, timeline, id);
        } catch (error) {
          log.debug({ timeline, member: id, err: errorMessage(error) }, 'a member does not take the configuration over now');
        }
      }),
    );
    if (told.size === voters.length) await store.setTold(this.#c.db.local, timeline, configuration.generation);
    return told;
  }

  /** Only a member that joins is ever made here, and one of those that a recovery of the WAL begins with. */
  async #make(row: store.ConfigurationRow, { members, newMembers }: Configuration, id: string): Promise<ConfigureRequest['make']> {
    const lineages = store.lineagesOf(row);
    if (newMembers === null || members.includes(id)) {
      if (lineages.length === 1 || id !== memberIdOf(nodeOf(id), lineages.at(-1)?.number ?? 0)) return null;
      const place = (await walMembers(this.#c.db, row.timeline_id)).find((m) => m.member_id === id);
      if (place === undefined || !place.wanted || place.made || place.lost) return null;
    }
    const incarnation = await store.diskOf(this.#c.db, nodeOf(id));
    if (incarnation === undefined) return null;
    const { start_lsn: startLsn, prev_record_lsn: prevRecordLsn, system_id: systemId, pg_version: pgVersion } = row;
    const timeline = { startLsn, prevRecordLsn, systemId, pgVersion, ...(lineages.length === 1 ? {} : { lineages }) };
    return { member: id, incarnation, timeline };
  }

  /** The new member copies from whoever has most; with a compute running it streams by itself, too. */
  #copy(row: store.ConfigurationRow, joining: string, statuses: ReadonlyMap<string, WalTimelineStatus>): void {
    const { far, log } = this.#c;
    const own = statuses.get(joining);
    if (own === undefined || own.streaming !== null || this.#copying.has(row.timeline_id)) return;
    const sound = [...statuses].filter(([id, s]) => id !== joining && s.damaged === null);
    sound.sort(([, a], [, b]) => b.term - a.term || parseLsn(b.flushRecordLsn) - parseLsn(a.flushRecordLsn));
    const donor = far.nodes.find((n) => n.id === nodeOf(sound[0]?.[0] ?? ''));
    if (donor === undefined) return;
    this.#copying.add(row.timeline_id);
    const copy = far.safekeeper(nodeOf(joining))?.catchUp(row.project_uid, row.timeline_id, donor) ?? Promise.resolve();
    copy
      .catch((error: unknown) =>
        log.debug({ timeline: row.timeline_id, joining, donor: donor.id, err: errorMessage(error) }, 'cannot catch up now'),
      )
      .finally(() => this.#copying.delete(row.timeline_id));
  }
}

export function reportOf(status: WalTimelineStatus): MemberReport {
  const flushRecordLsn = parseLsn(status.flushRecordLsn);
  return {
    term: parseTerm(status.term),
    lastLogTerm: lastLogTerm(historyFromJson(status.termHistory), flushRecordLsn),
    flushRecordLsn,
    generation: status.generation ?? 0,
    damaged: status.damaged !== null,
  };
}
