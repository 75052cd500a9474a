/** The Manager's rows of membership on a real metadata database: compare-and-swap, timelines from before there were configurations, disks. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { silentLogger } from '@lakebase/base';
import { type ProjectUid, type TimelineId, newProjectUid, newTimelineId } from '@lakebase/ids';
import { abortReplacement, beginReplacement } from '@lakebase/wal-quorum';
import { Database } from './metadata/database.ts';
import type { FarEnd } from './far-end.ts';
import { toConfiguration, walForStart } from './reconcile/membership.ts';
import * as store from './store/membership.ts';
import * as projects from './store/projects.ts';
import { TestBed } from './testing/test-manager.ts';

let bed: TestBed;
let db: Database;
before(async () => {
  bed = await TestBed.create();
  db = new Database({ connectionString: await bed.newDatabase() }, silentLogger);
  await db.migrate();
});
after(async () => {
  await db?.close();
  await bed?.[Symbol.asyncDispose]();
});

async function branch(): Promise<{ project: ProjectUid; timeline: TimelineId }> {
  const [project, timeline] = [newProjectUid(), newTimelineId()];
  await db.query(`INSERT INTO workspaces (id) VALUES ('w') ON CONFLICT DO NOTHING`);
  await projects.insertProject(db, {
    uid: project,
    workspace_id: 'w',
    project_id: `p-${project.slice(0, 8)}`,
    display_name: 'p',
    owner: 'o',
    pg_version: 18,
    system_id: '7',
    retention_seconds: 1,
    default_endpoint_settings: {
      autoscaling_limit_min_cu: 1,
      autoscaling_limit_max_cu: 1,
      suspend_timeout_seconds: null,
      pg_settings: {},
    },
    managed_key_id: null,
  });
  await projects.insertBranch(db, { timeline, project, id: 'b', uid: `br-${timeline.slice(0, 8)}` });
  await projects.insertWalMembers(db, timeline, project, ['sk1', 'sk2', 'sk3']);
  await projects.setBranchStart(db, timeline, '0/1000028', '0/1000000');
  await projects.setProjectReady(db, project);
  await db.query('UPDATE wal_members SET made = true WHERE timeline_id = $1', [timeline]);
  return { project, timeline };
}

const now = async (timeline: TimelineId): Promise<store.ConfigurationRow> => {
  const row = await store.configurationOf(db, timeline);
  assert.ok(row !== undefined);
  return row;
};

test('a generation is given out once, also to a timeline that nobody had configured', async () => {
  for (const legacy of [false, true]) {
    const { timeline } = await branch();
    if (legacy) await db.query('DELETE FROM wal_configurations WHERE timeline_id = $1', [timeline]);
    const first = toConfiguration(await now(timeline));
    assert.deepEqual(first, { generation: legacy ? 0 : 1, members: ['sk1', 'sk2', 'sk3'], newMembers: null });
    const joint = beginReplacement(first, 'sk3', 'sk4_g2');
    const other = beginReplacement(first, 'sk2', 'sk4_g2');
    assert.equal(await store.swapConfiguration(db, timeline, first.generation, joint), true);
    assert.equal(await store.swapConfiguration(db, timeline, first.generation, other), false);
    assert.deepEqual(toConfiguration(await now(timeline)), joint);
    assert.ok((await store.unsettled(db)).some((row) => row.timeline_id === timeline));
    const back = abortReplacement(joint);
    assert.equal(await store.swapConfiguration(db, timeline, joint.generation, back), true);
    await store.setTold(db, timeline, joint.generation);
    assert.equal((await now(timeline)).told, false, 'what was told of another generation says nothing');
    await store.setTold(db, timeline, back.generation);
    assert.ok(!(await store.unsettled(db)).some((row) => row.timeline_id === timeline));
  }
});

test('another disk: everything on that node is lost, once; a single loss is that of the member named', async () => {
  const { project, timeline } = await branch();
  const lost = async (): Promise<string[]> => (await projects.walMembers(db, timeline)).filter((m) => m.lost).map((m) => m.member_id);
  assert.equal(await store.seeDisk(db, 'sk2', 'disk-a'), 0, 'seen for the first time');
  assert.equal(await store.seeDisk(db, 'sk2', 'disk-a'), 0);
  assert.ok((await store.seeDisk(db, 'sk2', 'disk-b')) >= 1);
  assert.equal(await store.seeDisk(db, 'sk2', 'disk-b'), 0);
  assert.deepEqual(await lost(), ['sk2']);
  await store.placeMember(db, timeline, project, 'sk2', 'sk2_g2');
  assert.deepEqual(await lost(), []);
  assert.ok(!(await projects.laggingMembers(db)).some((m) => m.timeline_id === timeline), 'the change makes it, nobody else');
  assert.equal(await store.loseMember(db, timeline, 'sk2', 'sk2'), false, 'that one is gone already');
  assert.equal(await store.loseMember(db, timeline, 'sk2', 'sk2_g2'), true);
  await store.restoreMember(db, timeline, 'sk2', 'sk2', false);
  assert.deepEqual(await lost(), []);
  assert.ok((await store.evictNode(db, 'sk1')) >= 1);
  assert.equal((await store.nodeRows(db)).find((n) => n.id === 'sk2')?.incarnation, 'disk-b');
});

test('too few members left: no compute is elected; a recovery begins a lineage, which says where members begin', async () => {
  const { project, timeline } = await branch();
  const far = { safekeepers: [], nodes: [] } as unknown as FarEnd;
  await store.loseMember(db, timeline, 'sk1', 'sk1');
  assert.deepEqual((await walForStart({ db, far }, timeline)).walConfiguration?.members, ['sk1', 'sk2', 'sk3']);
  await store.loseMember(db, timeline, 'sk2', 'sk2');
  await assert.rejects(walForStart({ db, far }, timeline), { code: 'UNAVAILABLE', message: /2 of the 3 safekeepers .* recover-wal/ });
  assert.deepEqual(store.lineagesOf(await now(timeline)), [{ number: 0, startLsn: '0/1000028' }]);
  const entry: store.LineageEntry = {
    number: 2,
    startLsn: '0/5000A0',
    prevRecordLsn: '0/500060',
    pageLsn: '0/500000',
    walEndLsn: '0/5000A0',
    lastCommitTime: null,
    time: new Date().toISOString(),
    by: 'admin',
  };
  await db.transaction(async (tx) => {
    assert.ok(await store.swapConfiguration(tx, timeline, 1, { generation: 2, members: ['sk1_g2', 'sk2_g2', 'sk3_g2'], newMembers: null }));
    await store.beginLineage(tx, timeline, entry);
    for (const id of ['sk1', 'sk2', 'sk3']) await store.placeMember(tx, timeline, project, id, `${id}_g2`);
  });
  const row = await now(timeline);
  assert.deepEqual([row.start_lsn, row.prev_record_lsn, row.first_lsn, row.told], ['0/5000A0', '0/500060', '0/1000028', false]);
  assert.deepEqual(store.lineagesOf(row).at(-1), { number: 2, startLsn: '0/5000A0' });
  assert.deepEqual((await store.recoveries(db)).find((r) => r.timeline_id === timeline)?.entry, entry);
  assert.equal((await walForStart({ db, far }, timeline)).walConfiguration?.generation, 2);
  assert.ok(!(await store.withoutStart(db)).some((b) => b.timeline_id === timeline));
});
