/** Issue 3 section 1: extensions that are not Postgres's own, from a configured installation: pgvector (index pages through generic WAL) and PostGIS
 *  (GiST, SP-GiST and BRIN). Built, filled, asked; the same after a suspend and after a lost compute, with whole indexes.
 *  `LAKEBASE_TEST_EXTENSIONS_PG` names the prefix of an installation of Postgres 18 that has one of them or both; without it these tests are skipped. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { Cluster, ClusterInternals, eventually } from '@lakebase/testkit';
import type pg from 'pg';

const prefix = process.env['LAKEBASE_TEST_EXTENSIONS_PG'];
const missing = (name: string): string | false => {
  if (prefix === undefined) return 'LAKEBASE_TEST_EXTENSIONS_PG names no installation of Postgres 18 that has it';
  const there = ['share/extension', 'share/postgresql/extension'].some((d) => existsSync(join(prefix, d, `${name}.control`)));
  return there ? false : `${prefix} has no ${name}`;
};

interface Scene {
  readonly fill: readonly string[];
  readonly change: string;
  /** Exact answers: by index where the planner can, and by scan. */
  readonly ask: readonly string[];
  /** Through an index that is approximate: how many rows it must find. */
  readonly nearest: readonly { readonly index: string; readonly sql: string; readonly rows: number }[];
}

const SCENES: Readonly<Record<'vector' | 'postgis', Scene>> = {
  vector: {
    fill: [
      'CREATE TABLE items (id int PRIMARY KEY, v vector(32))',
      'INSERT INTO items SELECT i, (SELECT array_agg(hashint4(i * 32 + j)::real / 2147483648)::vector FROM generate_series(1, 32) j) FROM generate_series(1, 4000) i',
      'CREATE INDEX by_hnsw ON items USING hnsw (v vector_l2_ops)',
      'CREATE INDEX by_lists ON items USING ivfflat (v vector_cosine_ops) WITH (lists = 20)',
    ],
    change:
      'INSERT INTO items SELECT i, (SELECT array_agg(hashint4(i * 32 + j)::real / 2147483648)::vector FROM generate_series(1, 32) j) FROM generate_series(4001, 4500) i; DELETE FROM items WHERE id % 10 = 3; VACUUM items',
    ask: ["SELECT count(*), md5(string_agg(v::text, ',' ORDER BY id)) FROM items"],
    nearest: [
      { index: 'by_hnsw', sql: 'SELECT id FROM items ORDER BY v <-> (SELECT v FROM items WHERE id = 77) LIMIT 20', rows: 20 },
      { index: 'by_lists', sql: 'SELECT id FROM items ORDER BY v <=> (SELECT v FROM items WHERE id = 77) LIMIT 20', rows: 20 },
    ],
  },
  postgis: {
    fill: [
      'CREATE TABLE places (id int PRIMARY KEY, g geometry(Point, 4326), area geometry)',
      'INSERT INTO places SELECT i, ST_SetSRID(ST_MakePoint(i % 180, i % 89), 4326), ST_Buffer(ST_MakePoint(i % 180, i % 89), 0.3) FROM generate_series(1, 5000) i',
      'CREATE INDEX places_gist ON places USING gist (g)',
      'CREATE INDEX places_spgist ON places USING spgist (g)',
      'CREATE INDEX places_brin ON places USING brin (g)',
      'CREATE INDEX places_area ON places USING gist (area)',
    ],
    change: 'UPDATE places SET g = ST_Translate(g, 0.5, 0.5) WHERE id % 7 = 0; DELETE FROM places WHERE id % 11 = 0; VACUUM places',
    ask: [
      'SELECT count(*), sum(id) FROM places WHERE g && ST_MakeEnvelope(10, 10, 40, 40, 4326)',
      'SELECT count(*), sum(id) FROM places WHERE ST_Intersects(area, ST_MakeEnvelope(20, 20, 30, 30))',
      'SELECT id FROM places ORDER BY g <-> ST_SetSRID(ST_MakePoint(33.3, 44.4), 4326), id LIMIT 5',
    ],
    nearest: [],
  },
};

describe("extensions that are not Postgres's own", { skip: prefix === undefined ? missing('vector') : false }, () => {
  let cluster: Cluster;
  let inside: ClusterInternals;
  before(async () => {
    cluster = await Cluster.start({ env: { LAKEBASE_POSTGRES: prefix } });
    inside = new ClusterInternals(cluster);
  });
  after(() => cluster?.[Symbol.asyncDispose]());

  for (const name of ['vector', 'postgis'] as const)
    it(`${name}: the same after a suspend and after a lost compute`, { skip: missing(name) }, async () => {
      const scene = SCENES[name];
      const first = await session(inside);
      await first.query(`CREATE EXTENSION ${name}; CREATE EXTENSION IF NOT EXISTS amcheck`);
      for (const sql of scene.fill) await first.query(sql);
      const filled = await answers(first, scene);
      await first.end();

      assert.equal((await cluster.cli(['suspend'])).code, 0);
      const second = await session(inside);
      assert.deepEqual(await answers(second, scene), filled, 'after a suspend');
      for (const sql of scene.change.split('; ')) await second.query(sql);
      const changed = await answers(second, scene);
      await second.end();

      cluster.kill('postgres');
      await (await eventually('a new compute', () => cluster.connect())).end();
      const third = await session(inside);
      assert.deepEqual(await answers(third, scene), changed, 'after a crash');
      await third.query(
        `SELECT bt_index_parent_check(c.oid, true) FROM pg_class c JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relpersistence = 'p'`,
      );
      await third.end();
    });

  async function session(of: ClusterInternals): Promise<pg.Client> {
    await (await cluster.connect()).end();
    return of.admin();
  }
});

async function answers(client: pg.Client, scene: Scene): Promise<unknown[]> {
  const found: unknown[] = [];
  for (const sql of scene.ask) {
    await client.query('SET enable_seqscan = off');
    const byIndex = (await client.query(sql)).rows;
    await client.query('RESET enable_seqscan; SET enable_indexscan = off; SET enable_bitmapscan = off');
    assert.deepEqual((await client.query(sql)).rows, byIndex, `${sql}: a scan says what the index says`);
    await client.query('RESET ALL');
    found.push(byIndex);
  }
  for (const { index, sql, rows } of scene.nearest) {
    await client.query('SET enable_seqscan = off; SET ivfflat.probes = 20');
    const plan = JSON.stringify((await client.query(`EXPLAIN (FORMAT json) ${sql}`)).rows);
    assert.ok(plan.includes(index), `${index} is used: ${plan}`);
    const near = (await client.query(sql)).rows;
    assert.equal(near.length, rows);
    found.push(near);
    await client.query('RESET ALL');
  }
  return found;
}
