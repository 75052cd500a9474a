/** The catalog survives its database: what was acknowledged is in the object store, whatever is lost, put back or killed, and nothing goes backwards. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { LakebaseError, armFailpoint, disarmFailpoints, failpointReached, releaseFailpoint } from '@lakebase/base';
import { CATALOG_HEAD_OBJECT, catalogLinkObject } from '@lakebase/object-store';
import { MemoryStore } from '@lakebase/object-store/testing';
import fc from 'fast-check';
import type { ProjectUid, TimelineId } from '@lakebase/ids';
import type { Database } from '../metadata/database.ts';
import { attach, timelinesOf, validate } from '../store/placements.ts';
import { CopiedDatabase, FakeRootKeys } from '../testing/copied-database.ts';
import { TestBed, eventually } from '../testing/test-manager.ts';
import { OWN_RELATIONS, RELATIONS } from './change-log.ts';

let bed: TestBed;
before(async () => {
  bed = await TestBed.create();
});
after(async () => {
  disarmFailpoints();
  await bed[Symbol.asyncDispose]();
});

const addUser = (db: Pick<Database, 'query'>, name: string): Promise<unknown> =>
  db.query(`INSERT INTO users (account_id, user_name, account_admin) VALUES ('default', $1, false)`, [name]);
const addToken = (db: Pick<Database, 'query'>, hash: string): Promise<unknown> =>
  db.query(`INSERT INTO tokens (hash, kind, identity, expire_time) VALUES (decode($1, 'hex'), 'CREDENTIAL', 'x', now())`, [hash]);
const users = async (db: Pick<Database, 'query'>): Promise<string[]> =>
  (await db.query<{ user_name: string }>('SELECT user_name FROM users ORDER BY id')).map((r) => r.user_name);

async function addBranch(db: Pick<Database, 'query'>, project: string, timeline: string): Promise<void> {
  await db.query(`INSERT INTO workspaces (id) VALUES ('default') ON CONFLICT DO NOTHING`);
  await db.query(
    `INSERT INTO projects (uid, workspace_id, project_id, display_name, owner, pg_version, system_id, retention_seconds, default_endpoint_settings, state)
     VALUES ($1, 'default', 'p', 'p', 'o', 18, '1', 0, '{}', 'READY')`,
    [project],
  );
  await db.query(
    `INSERT INTO branches (timeline_id, project_uid, branch_id, uid, is_default, state, start_lsn) VALUES ($1, $2, 'b', 'u', true, 'READY', '0/8')`,
    [timeline, project],
  );
  await db.query(`INSERT INTO placements (project_uid, owner, serving, generation) VALUES ($1, 'ps', 'ps', 1)`, [project]);
}

/** Store whose puts a test can refuse, before or after they were applied. */
class FlakyStore extends MemoryStore {
  mode: 'well' | 'away' | 'answer lost' = 'well';
  override async put(...args: Parameters<MemoryStore['put']>): ReturnType<MemoryStore['put']> {
    if (this.mode === 'away') throw new LakebaseError('UNAVAILABLE', 'blackhole');
    const tag = await super.put(...args);
    if (this.mode === 'answer lost') throw new LakebaseError('UNAVAILABLE', 'answer lost');
    return tag;
  }
  override async get(...args: Parameters<MemoryStore['get']>): ReturnType<MemoryStore['get']> {
    if (this.mode !== 'well') throw new LakebaseError('UNAVAILABLE', 'blackhole');
    return super.get(...args);
  }
}

describe('what is copied', () => {
  it('every relation that the migrations make', async () => {
    await using c = await CopiedDatabase.start(await bed.newDatabase(), new MemoryStore());
    const rows = await c.db.query<{ name: string; copied: boolean }>(
      `SELECT c.relname AS name, EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = 'catalog_changed') AS copied
       FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'`,
    );
    assert.deepEqual(rows.map((r) => r.name).sort(), [...RELATIONS, ...OWN_RELATIONS].sort());
    for (const { name, copied } of rows) assert.equal(copied, (RELATIONS as readonly string[]).includes(name), name);
  });

  it('nothing of it can be read in the store', async () => {
    const store = new MemoryStore();
    await using c = await CopiedDatabase.start(await bed.newDatabase(), store);
    await addUser(c.db, 'marker-user');
    await c.db.query(`INSERT INTO tokens (hash, kind, identity) VALUES ('marker-hash', 'ADMIN', 'marker-identity')`);
    assert.ok(store.objects.size >= 3);
    for (const [name, { bytes }] of store.objects)
      for (const marker of ['marker-user', 'marker-hash', 'marker-identity', Buffer.from('marker-hash').toString('hex')])
        assert.equal(bytes.includes(marker), false, `${marker} in ${name}`);
  });

  it('not that a branch has grown', async () => {
    const store = new MemoryStore();
    await using c = await CopiedDatabase.start(await bed.newDatabase(), store);
    const uid = 'a'.repeat(32);
    await c.db.query(`INSERT INTO workspaces (id) VALUES ('w')`);
    await c.db.query(
      `INSERT INTO projects (uid, workspace_id, project_id, display_name, owner, pg_version, system_id, retention_seconds, default_endpoint_settings, state)
       VALUES ($1, 'w', 'p', 'p', 'o', 18, '1', 1, '{}', 'READY')`,
      [uid],
    );
    await c.db.query(
      `INSERT INTO branches (timeline_id, project_uid, branch_id, uid, is_default, state) VALUES ($1, $1, 'b', 'b', true, 'READY')`,
      [uid],
    );
    const before = store.calls.put;
    await c.db.query('UPDATE branches SET layer_bytes = 1, logical_bytes = 1');
    assert.equal(store.calls.put - before, 0);
    await c.db.query(`UPDATE branches SET layer_bytes = 2, branch_id = 'c'`);
    assert.equal(store.calls.put - before, 1);
  });

  it('one put for a change, one for many that come together, none for nothing', async () => {
    const store = new MemoryStore();
    await using c = await CopiedDatabase.start(await bed.newDatabase(), store);
    let before = store.calls.put;
    await addUser(c.db, 'one');
    assert.equal(store.calls.put - before, 1);
    before = store.calls.put;
    await c.db.query(`UPDATE users SET user_name = user_name`);
    await c.db.query(`DELETE FROM users WHERE user_name = 'nobody'`);
    assert.equal(store.calls.put - before, 0);
    armFailpoint('manager.catalog.before-put', 'pause@1');
    const first = addUser(c.db, 'first');
    await failpointReached('manager.catalog.before-put', 1);
    const more = Array.from({ length: 6 }, (_, i) => addUser(c.db, `more${i}`));
    await eventually('all to wait', async () => {
      const [row] = await c.db.query<{ n: number }>(
        `SELECT count(*)::int AS n FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction' AND query LIKE 'DELETE FROM catalog_outbox%'`,
      );
      return row?.n === 1 + more.length;
    });
    releaseFailpoint('manager.catalog.before-put');
    await Promise.all([first, ...more]);
    disarmFailpoints();
    assert.ok(store.calls.put - before <= 3, `${store.calls.put - before} puts`);
    assert.equal(store.calls.list, 0);
  });

  it('uploads cost no put of the catalog: the version of an index is no change of the branch', async () => {
    const store = new MemoryStore();
    await using c = await CopiedDatabase.start(await bed.newDatabase(), store);
    const project = 'a'.repeat(32) as ProjectUid;
    const timeline = 'b'.repeat(32) as TimelineId;
    await addBranch(c.db, project, timeline);
    const put = (version: number) =>
      c.db.transaction((tx) => validate(tx, [{ project, generation: 1, published: [{ timeline, version }] }]));
    let before = store.calls.put;
    await put(1);
    assert.equal(store.calls.put - before, 1, 'the first index of a generation is a change');
    before = store.calls.put;
    for (const version of [2, 3, 4]) await put(version);
    assert.equal(store.calls.put - before, 0);
    const [branch] = await timelinesOf(c.db, [project]);
    assert.deepEqual([branch?.published_generation, branch?.published_version], [1, 4]);
  });

  it('a generation above all that were given out is known to be so: the catalog, or the store it came from, was put back', async () => {
    await using c = await CopiedDatabase.start(await bed.newDatabase(), new MemoryStore());
    const project = 'a'.repeat(32) as ProjectUid;
    await addBranch(c.db, project, 'b'.repeat(32));
    const confirm = (generation: number) => c.db.transaction((tx) => validate(tx, [{ project, generation, published: [] }]));
    assert.deepEqual((await confirm(1)).raised, []);
    assert.deepEqual((await confirm(5)).raised, [project]);
    assert.deepEqual((await confirm(5)).raised, []);
    const seen = (number: number) => c.db.transaction((tx) => attach(tx, 'ps', [{ project, seen: number }], 'ps'));
    const [same, higher] = [await seen(5), await seen(9)];
    assert.deepEqual([same.raised, same.rows[0]?.generation], [[], 6]);
    assert.deepEqual([higher.raised, higher.rows[0]?.generation], [[project], 10]);
  });
});

describe('a change', () => {
  it('is not to be seen before it is in the store', async () => {
    await using c = await CopiedDatabase.start(await bed.newDatabase(), new MemoryStore());
    armFailpoint('manager.catalog.before-put', 'pause');
    const adding = addUser(c.db, 'early');
    await failpointReached('manager.catalog.before-put', 1);
    assert.deepEqual(await users(c.db), []);
    releaseFailpoint('manager.catalog.before-put');
    await adding;
    disarmFailpoints();
    assert.deepEqual(await users(c.db), ['early']);
  });

  it('is refused, and changes nothing, while the store is away; what need not wait goes on; afterwards everything is copied', async () => {
    const store = new FlakyStore();
    const url = await bed.newDatabase();
    {
      await using c = await CopiedDatabase.start(url, store, { gatherMs: 5 });
      await addUser(c.db, 'before');
      store.mode = 'away';
      await assert.rejects(addUser(c.db, 'refused'), { code: 'UNAVAILABLE', message: /nothing was changed.*object store/ });
      assert.equal(c.copy.state, 'STORE_AWAY');
      await assert.rejects(addUser(c.db, 'refused'), { code: 'UNAVAILABLE' });
      await addToken(c.db.local, 'aa');
      assert.deepEqual(await users(c.db), ['before']);
      store.mode = 'well';
      await eventually('the copy', () => c.copy.state === 'OK');
      await addUser(c.db, 'after');
    }
    await using lost = await CopiedDatabase.start(await bed.newDatabase(), store);
    assert.deepEqual(await users(lost.db), ['before', 'after']);
    assert.equal((await lost.db.query('SELECT FROM tokens')).length, 1);
  });

  it('whose put was applied without an answer is refused, and is gone from the store as well', async () => {
    const store = new FlakyStore();
    {
      await using c = await CopiedDatabase.start(await bed.newDatabase(), store);
      await addUser(c.db, 'before');
      store.mode = 'answer lost';
      await assert.rejects(addUser(c.db, 'ghost'), { code: 'UNAVAILABLE' });
      store.mode = 'well';
      await eventually('the copy', () => c.copy.state === 'OK');
      assert.deepEqual(await users(c.db), ['before']);
    }
    await using lost = await CopiedDatabase.start(await bed.newDatabase(), store);
    assert.deepEqual(await users(lost.db), ['before']);
  });

  it('that reached the store and not the database, by a kill, is there after the next start', async () => {
    const store = new MemoryStore();
    const [url, killed] = [await bed.newDatabase(), await bed.newDatabase()];
    const c = await CopiedDatabase.start(url, store);
    await addUser(c.db, 'before');
    armFailpoint('manager.catalog.before-commit', 'pause');
    const between = addUser(c.db, 'between').catch(() => {});
    await failpointReached('manager.catalog.before-commit', 1);
    const kept = new Map(store.objects);
    await bed.copyDatabase(url, killed); // ends the session as a kill would
    disarmFailpoints();
    await between;
    await c.kill();
    store.objects.clear();
    for (const [name, object] of kept) store.objects.set(name, object);
    await using again = await CopiedDatabase.start(killed, store);
    assert.deepEqual(await users(again.db), ['before', 'between']);
  });
});

describe('a start', () => {
  it('on nothing restores everything, to the microsecond, and numbers go on', async () => {
    const store = new MemoryStore();
    let content: Record<string, string>;
    {
      await using c = await CopiedDatabase.start(await bed.newDatabase(), store, { gatherMs: 1 });
      for (const name of ['a', 'b', 'c']) await addUser(c.db, name);
      await c.db.query(`DELETE FROM users WHERE user_name = 'c'`);
      await addToken(c.db.local, 'bb');
      await c.db.query(`INSERT INTO workspaces (id) VALUES ('w1')`);
      await c.db.query(`INSERT INTO workspace_users SELECT 'w1', id FROM users`);
      await c.db.query(`INSERT INTO shred_reports VALUES ('p', 'default', 'w1', 'x', '{"n": 9007199254740993, "t": "ü\\u0001"}')`);
      content = await c.content();
    }
    await using lost = await CopiedDatabase.start(await bed.newDatabase(), store);
    assert.deepEqual(await lost.content(), content);
    await addUser(lost.db, 'd');
    const [{ id } = { id: 0 }] = await lost.db.query<{ id: number }>(`SELECT id FROM users WHERE user_name = 'd'`);
    assert.equal(id, 4);
  });

  it('on an older copy of the database catches up; what that had not copied stays', async () => {
    const store = new MemoryStore();
    const url = await bed.newDatabase();
    const old = await bed.newDatabase();
    const c = await CopiedDatabase.start(url, store, { gatherMs: 1_000_000 });
    await addUser(c.db, 'early');
    await addToken(c.db.local, 'cc');
    await bed.copyDatabase(url, old);
    await addUser(c.db, 'late');
    await c.db.query(`UPDATE users SET account_admin = true WHERE user_name = 'early'`);
    await c.kill();
    await using again = await CopiedDatabase.start(old, store);
    assert.deepEqual(await again.db.query('SELECT user_name, account_admin FROM users ORDER BY id'), [
      { user_name: 'early', account_admin: true },
      { user_name: 'late', account_admin: false },
    ]);
    assert.equal((await again.db.query('SELECT FROM tokens')).length, 1);
  });

  it('on a copy that is older than everything kept restores whole', async () => {
    const store = new MemoryStore();
    const url = await bed.newDatabase();
    const old = await bed.newDatabase();
    const c = await CopiedDatabase.start(url, store, { snapshotEvery: 2 });
    await addUser(c.db, 'first');
    await bed.copyDatabase(url, old);
    for (let i = 0; i < 12; i++) await addUser(c.db, `u${i}`);
    const content = await c.content();
    await c[Symbol.asyncDispose]();
    assert.equal(store.objects.has(catalogLinkObject(1)), false, 'old links are removed');
    assert.ok(store.objects.size < 14, `${store.objects.size} objects`);
    await using again = await CopiedDatabase.start(old, store);
    assert.deepEqual(await again.content(), content);
  });

  it('with a store that was put back to an earlier day keeps the newer database', async () => {
    const store = new MemoryStore();
    const url = await bed.newDatabase();
    let earlier: typeof store.objects;
    {
      await using c = await CopiedDatabase.start(url, store);
      await addUser(c.db, 'first');
      earlier = new Map(store.objects);
      await addUser(c.db, 'second');
    }
    store.objects.clear();
    for (const [name, object] of earlier) store.objects.set(name, object);
    {
      await using c = await CopiedDatabase.start(url, store);
      assert.deepEqual(await users(c.db), ['first', 'second']);
    }
    await using lost = await CopiedDatabase.start(await bed.newDatabase(), store);
    assert.deepEqual(await users(lost.db), ['first', 'second']);
  });

  it('is refused with another root key or another secret, and without the store when nothing is there yet', async () => {
    const store = new FlakyStore();
    const url = await bed.newDatabase();
    await (await CopiedDatabase.start(url, store))[Symbol.asyncDispose]();
    const other = new FakeRootKeys();
    other.root = 'else';
    const objects = new Map(store.objects);
    await assert.rejects(CopiedDatabase.start(await bed.newDatabase(), store, { keys: other }), { code: 'CONFIG' });
    await assert.rejects(CopiedDatabase.start(await bed.newDatabase(), store, { installation: 'b'.repeat(32) }), {
      code: 'CONFIG',
      message: /secret/,
    });
    await assert.rejects(CopiedDatabase.start(url, store, { installation: 'b'.repeat(32) }), { code: 'CONFIG' });
    assert.deepEqual(store.objects, objects);
    store.mode = 'away';
    await assert.rejects(CopiedDatabase.start(await bed.newDatabase(), store), { code: 'UNAVAILABLE' });
  });

  it('without the store goes on with what is there; once it answers, what was missing comes in', async () => {
    const store = new FlakyStore();
    const url = await bed.newDatabase();
    const old = await bed.newDatabase();
    const c = await CopiedDatabase.start(url, store);
    await addUser(c.db, 'early');
    await bed.copyDatabase(url, old);
    await addUser(c.db, 'late');
    await c.kill();
    store.mode = 'away';
    await using again = await CopiedDatabase.start(old, store);
    assert.equal(again.copy.state, 'STORE_AWAY');
    await assert.rejects(addUser(again.db, 'refused'), { code: 'UNAVAILABLE' });
    await addToken(again.db.local, 'dd');
    store.mode = 'well';
    await eventually('the copy', () => again.copy.state === 'OK');
    assert.deepEqual(await users(again.db), ['early', 'late']);
    assert.equal((await again.db.query('SELECT FROM tokens')).length, 1);
    await addUser(again.db, 'more');
  });

  it('finds damage: a flipped byte, a missing link, a link of another chain', async () => {
    const store = new MemoryStore();
    const c = await CopiedDatabase.start(await bed.newDatabase(), store);
    for (const name of ['a', 'b', 'c', 'd']) await addUser(c.db, name);
    await c.kill();
    const good = new Map(store.objects);
    const set = (name: string, bytes: Buffer): void => void store.objects.set(name, { bytes, tag: 'x' });
    const bytesOf = (name: string): Buffer => Buffer.from((good.get(name) as { bytes: Buffer }).bytes);
    for (const name of [CATALOG_HEAD_OBJECT, catalogLinkObject(1), catalogLinkObject(3)]) {
      const bytes = bytesOf(name);
      for (const at of [bytes.indexOf('"number"') + 10, bytes.indexOf(0x0a) + 3, bytes.length - 1]) {
        const bad = Buffer.from(bytes);
        bad[at] = (bad[at] as number) ^ 1;
        set(name, bad);
        await assert.rejects(CopiedDatabase.start(await bed.newDatabase(), store), { code: 'CORRUPT' }, `${name} at ${at}`);
        set(name, bytes);
      }
    }
    store.objects.delete(catalogLinkObject(3));
    await assert.rejects(CopiedDatabase.start(await bed.newDatabase(), store), { code: 'CORRUPT', message: /missing/ });
    set(catalogLinkObject(3), bytesOf(catalogLinkObject(4)));
    await assert.rejects(CopiedDatabase.start(await bed.newDatabase(), store), { code: 'CORRUPT' });
  });
});

it('of two Managers the older one changes nothing any more', async () => {
  const store = new MemoryStore();
  await using one = await CopiedDatabase.start(await bed.newDatabase(), store);
  await addUser(one.db, 'one');
  await using two = await CopiedDatabase.start(await bed.newDatabase(), store);
  await addUser(two.db, 'two');
  await two.db.confirmNewest();
  // Also what changes nothing: an old generation must not be called valid.
  await assert.rejects(one.db.confirmNewest(), { code: 'UNAVAILABLE', message: /another Manager/ });
  await assert.rejects(addUser(one.db, 'three'), { code: 'UNAVAILABLE', message: /another Manager/ });
  assert.equal(one.copy.state, 'FENCED');
  assert.deepEqual(await users(one.db), ['one']);
  assert.deepEqual(await users(two.db), ['one', 'two']);
});

it('property: any changes, failures of the store and losses: what was acknowledged is there, what was refused is not', async () => {
  const step = fc.oneof(
    { weight: 6, arbitrary: fc.record({ kind: fc.constant('change' as const), user: fc.nat(4) }) },
    { weight: 2, arbitrary: fc.record({ kind: fc.constant('local' as const), user: fc.nat(4) }) },
    {
      weight: 2,
      arbitrary: fc.record({
        kind: fc.constant('store' as const),
        mode: fc.constantFrom('well' as const, 'away' as const, 'answer lost' as const),
      }),
    },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('restart' as const) }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('lose' as const) }) },
  );
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 5, maxLength: 25 }), async (steps) => {
      const store = new FlakyStore();
      let url = await bed.newDatabase();
      const options = { gatherMs: 1, snapshotEvery: 3, putMs: 500 };
      let c = await CopiedDatabase.start(url, store, options);
      let acknowledged = 0;
      await c.db.query(
        `INSERT INTO users (account_id, user_name, account_admin) SELECT 'default', 'u' || i, false FROM generate_series(0, 4) AS i`,
      );
      const expected = new Map<string, number>();
      /** Refused: may be there only if the process died before it could say otherwise in the store. */
      const check = async (): Promise<void> => {
        for (const { user_name: name, n } of await c.db.query<{ user_name: string; n: number }>(
          `SELECT u.user_name, count(t.*)::int AS n FROM users u LEFT JOIN tokens t ON t.identity = u.user_name AND t.kind = 'ADMIN' GROUP BY 1`,
        ))
          assert.equal(n, expected.get(name) ?? 0, name);
      };
      try {
        for (const s of steps) {
          if (s.kind === 'change') {
            const name = `u${s.user}`;
            try {
              await c.db.query(`INSERT INTO tokens (hash, kind, identity) VALUES (decode($1, 'hex'), 'ADMIN', $2)`, [
                (++acknowledged).toString(16).padStart(8, '0'),
                name,
              ]);
              expected.set(name, (expected.get(name) ?? 0) + 1);
            } catch (error) {
              assert.ok(error instanceof LakebaseError && error.code === 'UNAVAILABLE', String(error));
            }
          } else if (s.kind === 'local')
            await c.db.local.query('UPDATE users SET account_admin = NOT account_admin WHERE user_name = $1', [`u${s.user}`]);
          else if (s.kind === 'store') {
            store.mode = s.mode;
            if (s.mode === 'well') await eventually('the copy', () => c.copy.state === 'OK');
          } else {
            // Healed first: a refused change whose put came through is undone by then.
            store.mode = 'well';
            await eventually('the copy', () => c.copy.state === 'OK');
            await c[Symbol.asyncDispose]();
            if (s.kind === 'lose') url = await bed.newDatabase();
            c = await CopiedDatabase.start(url, store, options);
          }
          await check();
        }
      } finally {
        store.mode = 'well';
        await c[Symbol.asyncDispose]();
      }
    }),
    { numRuns: 8 },
  );
});
