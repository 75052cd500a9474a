/** Every B-tree with all its heap's rows, and every heap, of the running compute are as Postgres's amcheck wants them. */
import assert from 'node:assert/strict';
import { type Cluster, ClusterInternals } from '@lakebase/testkit';
import type pg from 'pg';

export async function checkBtrees(admin: pg.Client): Promise<void> {
  await admin.query('CREATE EXTENSION IF NOT EXISTS amcheck');
  const { rows } = await admin.query<{ n: string }>(
    `SELECT count(bt_index_check(c.oid, true)) AS n FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid JOIN pg_am a ON a.oid = c.relam
     WHERE a.amname = 'btree' AND c.relpersistence = 'p' AND i.indisready AND i.indisvalid`,
  );
  assert.ok(Number(rows[0]?.n) > 100);
}

export async function amcheck(cluster: Cluster): Promise<void> {
  const admin = await new ClusterInternals(cluster).admin();
  try {
    await checkBtrees(admin);
    const heaps = await admin.query(
      "SELECT c.oid::regclass, v.* FROM pg_class c, LATERAL verify_heapam(c.oid) v WHERE c.relkind IN ('r', 't', 'm') AND c.relpersistence = 'p'",
    );
    assert.deepEqual(heaps.rows, []);
  } finally {
    await admin.end();
  }
}
