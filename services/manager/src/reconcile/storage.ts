/** Brings the storage of one project to its desired state. Every step looks at what is recorded, asks for something idempotent, and
 *  records the answer, so it can be run again from any point after a kill.
 *  Create: key -> template -> page timeline -> WAL timelines on a majority -> READY. Delete: computes gone -> keys destroyed -> page timeline -> rows;
 *  WAL timelines still to be made or removed are finished by {@link reconcileMembers}. */
import type { CreateWalTimeline } from '@lakebase/api';
import { LakebaseError, type Logger, SerialQueue, errorMessage, isCode } from '@lakebase/base';
import type { ProjectUid, TimelineId } from '@lakebase/ids';
import { type FarEnd, type FarPageserver, ignoreNotFound } from '../far-end.ts';
import type { Database } from '../metadata/database.ts';
import { completeTarget } from '../store/operations.ts';
import { diskOf, seeDisk, storedConfiguration } from '../store/membership.ts';
import * as projects from '../store/projects.ts';
import { toConfiguration, walOf } from './membership.ts';
import type { Placements } from './placements.ts';
import type { ProjectKeyring } from './project-keyring.ts';

export interface StorageContext {
  readonly db: Database;
  readonly far: FarEnd;
  readonly log: Logger;
  readonly keys: ProjectKeyring;
  readonly placements: Placements;
  /** Stops every compute of the project and returns when they are gone. */
  stopComputes(project: ProjectUid): Promise<void>;
}

/** Returns when the project is READY or gone; throws what it could not get past (nothing is lost: run it again). */
export async function reconcileProject(c: StorageContext, uid: ProjectUid): Promise<'READY' | 'GONE'> {
  const project = await projects.projectByUid(c.db, uid);
  if (project === undefined) return 'GONE';
  if (project.state === 'READY') return 'READY';
  if (project.state === 'DELETING') {
    await removeProject(c, uid);
    return 'GONE';
  }
  await c.keys.create(project);
  const pageserver = await c.placements.serving(uid);
  await ensureTemplate(c.far, pageserver, project.pg_version);
  for (const branch of await projects.branchesOf(c.db, uid)) {
    let start = { startLsn: branch.start_lsn, prevRecordLsn: branch.prev_record_lsn };
    if (start.startLsn === null || start.prevRecordLsn === null) {
      const status = await pageserver.client
        .create(uid, branch.timeline_id, {
          pgVersion: project.pg_version,
          systemId: project.system_id,
          safekeepers: c.far.safekeepers,
        })
        .catch((error: unknown) => {
          // Its disk was lost, and the template with it: the next try looks again.
          if (isCode(error, 'NOT_FOUND')) templatesOf(c.far).made.delete(`${pageserver.id}/${project.pg_version}`);
          throw error;
        });
      start = { startLsn: status.startLsn, prevRecordLsn: status.startPrevRecordLsn };
      await projects.setBranchStart(c.db.local, branch.timeline_id, status.startLsn, status.startPrevRecordLsn);
      await projects.setAnnounced(c.db.local, branch.timeline_id, JSON.stringify(c.far.nodes));
    }
    await createWalTimelines(c, branch.timeline_id, {
      systemId: project.system_id,
      pgVersion: project.pg_version,
      startLsn: start.startLsn as string,
      prevRecordLsn: start.prevRecordLsn as string,
    });
  }
  await c.db.transaction(async (tx) => {
    // A delete may have come in between: its state must not be overwritten.
    const now = (await tx.query<{ state: string }>('SELECT state FROM projects WHERE uid = $1 FOR UPDATE', [uid]))[0];
    if (now?.state !== 'CREATING') return;
    await projects.setProjectReady(tx, uid);
    await completeTarget(tx, `project:${uid}`, { response: {} });
  });
  const after = await projects.projectByUid(c.db, uid);
  return after?.state === 'READY' ? 'READY' : reconcileProject(c, uid);
}

interface KnownTemplates {
  /** By pageserver and major. */
  readonly made: Map<string, Promise<void>>;
  /** The compute host makes one at a time. */
  readonly making: SerialQueue;
}
const templates = new WeakMap<FarEnd, KnownTemplates>();

function templatesOf(far: FarEnd): KnownTemplates {
  let known = templates.get(far);
  if (known === undefined) templates.set(far, (known = { made: new Map(), making: new SerialQueue() }));
  return known;
}

/** One pristine cluster per major version on each pageserver; made once, by one caller at a time. */
function ensureTemplate(far: FarEnd, { id, client, address }: FarPageserver, major: number): Promise<void> {
  const { made, making } = templatesOf(far);
  const name = `${id}/${major}`;
  const running = made.get(name);
  if (running !== undefined) return running;
  const work = (async () => {
    try {
      await client.template(major);
    } catch (error) {
      if (!isCode(error, 'NOT_FOUND')) throw error;
      await making.run(() => far.computeHost.makeTemplate(major, address.httpUrl));
    }
  })();
  made.set(name, work);
  work.catch(() => made.delete(name));
  return work;
}

/** Asks all members at once and returns as soon as a majority has the timeline; the rest is for reconcileMembers. */
async function createWalTimelines(c: StorageContext, timeline: TimelineId, body: CreateWalTimeline): Promise<void> {
  const members = await projects.walMembers(c.db, timeline);
  const need = Math.floor(members.length / 2) + 1;
  let made = members.filter((m) => m.made).length;
  const missing = members.filter((m) => !m.made && m.wanted && !m.lost);
  const problems: string[] = [];
  await new Promise<void>((resolve) => {
    if (made >= need || missing.length === 0) resolve();
    let open = missing.length;
    for (const member of missing) {
      makeMember(c, member, body)
        .then(() => made++)
        .catch((error) => problems.push(`${member.safekeeper_id}: ${errorMessage(error)}`))
        .finally(() => {
          open--;
          if (made >= need || open === 0) resolve();
        });
    }
  });
  if (made < need)
    throw new LakebaseError(
      'UNAVAILABLE',
      `only ${made} of ${members.length} safekeepers made the timeline, ${need} needed (${problems.join('; ')})`,
    );
}

async function makeMember(c: StorageContext, member: projects.WalMemberRow, body: CreateWalTimeline): Promise<void> {
  const client = c.far.safekeeper(member.safekeeper_id);
  if (client === undefined) throw new LakebaseError('CONFIG', `safekeeper ${member.safekeeper_id} is not in the configuration`);
  const row = await storedConfiguration(c.db, member.timeline_id);
  const incarnation = (await diskOf(c.db, member.safekeeper_id)) ?? (await firstDisk(c, member.safekeeper_id));
  await client.create(member.project_uid, member.timeline_id, {
    ...body,
    ...(row === undefined ? {} : { membership: { member: member.member_id, configuration: toConfiguration(row) } }),
    ...(incarnation === undefined ? {} : { incarnation }),
  });
  await projects.setMemberMade(c.db.local, member);
}

/** A member is made on a disk that the catalog knows for good: else its loss would go unnoticed. */
async function firstDisk(c: Pick<StorageContext, 'db' | 'far'>, id: string): Promise<string | undefined> {
  const node = await c.far.safekeeper(id)?.node();
  if (typeof node?.incarnation !== 'string') return undefined;
  await c.db.transaction((tx) => seeDisk(tx, id, node.incarnation));
  return node.incarnation;
}

async function removeProject(c: StorageContext, uid: ProjectUid): Promise<void> {
  await c.stopComputes(uid);
  const project = await projects.projectByUid(c.db, uid);
  // From here on nobody can read what is left, wherever a copy of it may be.
  if (project !== undefined) await c.keys.shred(project);
  const { client } = await c.placements.holding(uid);
  for (const branch of await projects.branchesOf(c.db, uid)) await ignoreNotFound(client.remove(uid, branch.timeline_id));
  await c.db.transaction(async (tx) => {
    await completeTarget(tx, `project:${uid}`, { response: {} });
    await projects.deleteProjectRows(tx, uid);
  });
  await reconcileMembers(c).catch((error) =>
    c.log.warn({ err: errorMessage(error) }, 'WAL of a deleted project is still on some safekeepers'),
  );
}

/** Safekeepers may listen elsewhere after a restart of the machine's services: the pageserver, which follows them, is told. */
export async function announceMembers(c: Pick<StorageContext, 'db' | 'far' | 'log' | 'placements'>): Promise<void> {
  const addresses = JSON.stringify(c.far.nodes);
  for (const branch of await projects.unannounced(c.db, addresses)) {
    try {
      const { safekeepers } = await walOf(c, branch.timeline_id);
      const lineage = branch.wal_lineages.at(-1);
      const body = {
        pgVersion: branch.pg_version,
        systemId: branch.system_id,
        safekeepers,
        walLineage: lineage?.number ?? 0,
        ...(lineage === undefined ? {} : { walLineageStart: lineage.startLsn }),
      };
      await (await c.placements.serving(branch.project_uid)).client.create(branch.project_uid, branch.timeline_id, body);
      await projects.setAnnounced(c.db.local, branch.timeline_id, addresses, branch.version);
    } catch (error) {
      c.log.warn({ timeline: branch.timeline_id, err: errorMessage(error) }, 'the pageserver does not know yet where the safekeepers are');
    }
  }
}

/** One round over all members that are not where they should be. Returns how many are left. */
export async function reconcileMembers(c: Pick<StorageContext, 'db' | 'far' | 'log'>): Promise<number> {
  let left = 0;
  for (const member of await projects.laggingMembers(c.db)) {
    try {
      if (member.wanted) {
        const [branch] = (await projects.branchesOf(c.db, member.project_uid)).filter((b) => b.timeline_id === member.timeline_id);
        const project = await projects.projectByUid(c.db, member.project_uid);
        if (branch === undefined || branch.start_lsn === null || branch.prev_record_lsn === null || project === undefined) continue;
        const body = {
          systemId: project.system_id,
          pgVersion: project.pg_version,
          startLsn: branch.start_lsn,
          prevRecordLsn: branch.prev_record_lsn,
        };
        await makeMember(c as StorageContext, member, body);
      } else {
        const client = c.far.safekeeper(member.safekeeper_id);
        // A member taken out of the configuration holds nothing we could remove.
        // A timeline that goes on with others keeps its WAL in the object store.
        const goesOn = (await projects.branchesOf(c.db, member.project_uid)).some((b) => b.timeline_id === member.timeline_id);
        const project = goesOn ? await projects.projectByUid(c.db, member.project_uid) : undefined;
        const options = project !== undefined && project.state !== 'DELETING' ? ({ objects: 'keep' } as const) : {};
        if (client !== undefined) await ignoreNotFound(client.remove(member.project_uid, member.timeline_id, options));
        await projects.forgetMember(c.db, member);
      }
    } catch (error) {
      left++;
      c.log.warn(
        { safekeeper: member.safekeeper_id, timeline: member.timeline_id, err: errorMessage(error) },
        'a safekeeper is not where it should be; trying again later',
      );
    }
  }
  return left;
}
