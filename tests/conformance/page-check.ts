/** Every page of every fork of a database: storage's latest against the compute's own, after masking.
 *  The compute's side is read through SQL (pageinspect's C function as a temporary function, so that the catalogs the suites look at stay
 *  untouched): that is what its queries see, whatever its files hold.
 *  Invariants: a difference is reported only after it was seen on three reads with all WAL flushed in between, so that a page that changes
 *  meanwhile is not one; nothing is skipped silently: what is not compared is counted by reason. */
import { BLCKSZ, FORK_FSM, FORK_INIT, FORK_MAIN, FORK_VM, formatLsn, type Lsn, parseLsn, type RelTag, relPath } from '@lakebase/ids';
import { pageLsn, RM_SEQ_ID } from '@lakebase/pg-format';
import type pg from 'pg';
import { ALLOWED_MAP_LOSS, ALLOWED_PAGE_DIFFERENCES } from './allowed-differences.ts';
import { firstDifferences } from '../oracle/diff.ts';
import {
  isEmptyPage,
  isSoundFsmPage,
  maskMain,
  maskVisibilityMap,
  resourceManagerOf,
  sequenceAgrees,
  sequenceValue,
} from './page-masks.ts';
import { recordsOf } from './wal-records.ts';

const FORK_NAMES = ['main', 'fsm', 'vm', 'init'] as const;
const RUN_BLOCKS = 128;
const BATCH_BLOCKS = 256;
const ATTEMPTS = 3;

/** No bit in `part` that `whole` has not. */
const isSubset = (part: Buffer, whole: Buffer): boolean => part.every((byte, i) => (byte & ~(whole[i] as number)) === 0);

export interface PageMismatch {
  readonly relation: string;
  readonly path: string;
  readonly block: number;
  readonly computeLsn: string;
  readonly storageLsn: string;
  readonly detail: string;
  readonly records: readonly string[];
}

/** What is asked of storage: {@link PageSource} does it. */
export interface PageReader {
  pages(tag: RelTag, block: number, count: number, atLeast: Lsn): Promise<Buffer>;
  size(tag: RelTag, lsn: Lsn): Promise<number | undefined>;
}

export class PageReport {
  /** Where the running compute's WAL begins. */
  walStart = '0/0';
  relations = 0;
  forks = 0;
  pages = 0;
  fsmPages = 0;
  vmPages = 0;
  /** See ALLOWED_MAP_LOSS. */
  vmLost = 0;
  sequences = 0;
  /** Pages that only the compute has, with nothing on them: extension is not WAL-logged. */
  emptyTail = 0;
  unlogged = 0;
  /** By reason, of allowed-differences.ts. */
  readonly allowed: Map<string, number> = new Map();
  readonly mismatches: PageMismatch[] = [];
  mismatchCount = 0;
}

interface RelationRow {
  readonly name: string;
  readonly relkind: string;
  readonly handler: string | null;
  readonly persistence: string;
  readonly spc: number;
  readonly db: number;
  readonly node: number;
  readonly increment: string | null;
  readonly sizes: readonly number[];
}

const RELATIONS = `
  SELECT format('%I.%I', n.nspname, c.relname) AS name, c.relkind, p.proname AS handler, c.relpersistence AS persistence,
         CASE WHEN c.reltablespace = 0 THEN d.dattablespace ELSE c.reltablespace END::int8::float8 AS spc,
         CASE WHEN c.relisshared THEN 0 ELSE d.oid::int8::float8 END AS db,
         pg_relation_filenode(c.oid)::int8::float8 AS node, s.seqincrement::text AS increment,
         ARRAY[coalesce(pg_relation_size(c.oid, 'main'), 0), coalesce(pg_relation_size(c.oid, 'fsm'), 0),
               coalesce(pg_relation_size(c.oid, 'vm'), 0), coalesce(pg_relation_size(c.oid, 'init'), 0)]::float8[] AS sizes
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  CROSS JOIN (SELECT * FROM pg_database WHERE datname = current_database()) d
  LEFT JOIN pg_am a ON a.oid = c.relam LEFT JOIN pg_proc p ON p.oid = a.amhandler LEFT JOIN pg_sequence s ON s.seqrelid = c.oid
  WHERE pg_relation_filenode(c.oid) IS NOT NULL AND c.relpersistence <> 't'`;

/** Makes every change so far durable and visible to storage's readers: the commit of a transactional message waits for the quorum. Returns the end
 *  of the message's record, behind every change so far. */
export async function flushWal(client: pg.Client): Promise<Lsn> {
  const { rows } = await client.query<{ at: string }>("SELECT pg_logical_emit_message(true, 'conformance', 'flush') AS at");
  return parseLsn(rows[0]?.at ?? '');
}

export async function preparePageReads(client: pg.Client): Promise<void> {
  await client.query('SET statement_timeout = 0; SET search_path = pg_catalog; SET client_min_messages = warning');
  await client.query(
    "CREATE OR REPLACE FUNCTION pg_temp.lb_page(text, text, int8) RETURNS bytea AS '$libdir/pageinspect', 'get_raw_page_fork_1_9' LANGUAGE C STRICT",
  );
}

async function computePages(client: pg.Client, runs: readonly BlockRun[]): Promise<Buffer[]> {
  const { rows } = await client.query<[number, Buffer]>({
    text: `SELECT i::int4, string_agg(pg_temp.lb_page(n, f, b), ''::bytea ORDER BY b)
           FROM unnest($1::text[], $2::text[], $3::int8[], $4::int8[]) WITH ORDINALITY u(n, f, first, last, i), generate_series(first, last) b
           GROUP BY i ORDER BY i`,
    values: [
      runs.map((r) => r.fork.relation.name),
      runs.map((r) => FORK_NAMES[r.fork.tag.fork]),
      runs.map((r) => r.from),
      runs.map((r) => r.from + r.count - 1),
    ],
    rowMode: 'array',
  } as never);
  return rows.map(([, pages]) => pages);
}

export async function checkDatabase(client: pg.Client, source: PageReader, report: PageReport = new PageReport()): Promise<PageReport> {
  await preparePageReads(client);
  await client.query('CHECKPOINT');
  const { rows } = await client.query<RelationRow>(RELATIONS);
  const flushed = await flushWal(client);
  const forks = rows.flatMap((relation) => forksOf(report, relation));
  // Sizes are asked for all at once: most requests are answered before the next one is written.
  const sizes = await Promise.all(forks.map((fork) => (isMap(fork) ? Promise.resolve(fork.blocks) : source.size(fork.tag, flushed))));
  for (const [i, fork] of forks.entries()) {
    const stored = sizes[i];
    if (stored === undefined || stored > fork.blocks) await settleSize(client, source, report, fork);
  }
  for (const batch of batches(forks)) await compareBatch(client, source, report, batch);
  await client.query('RESET search_path');
  return report;
}

interface Fork {
  readonly relation: RelationRow;
  readonly rmid: number;
  readonly tag: RelTag;
  readonly blocks: number;
}

interface BlockRun {
  readonly fork: Fork;
  readonly from: number;
  readonly count: number;
}

/** Map forks come into being on either side without WAL: their sizes are not compared. */
const isMap = (fork: Fork): boolean => fork.tag.fork === FORK_FSM || fork.tag.fork === FORK_VM;

function forksOf(report: PageReport, relation: RelationRow): Fork[] {
  report.relations++;
  const forks: Fork[] = [];
  for (const fork of [FORK_MAIN, FORK_FSM, FORK_VM, FORK_INIT] as const) {
    const blocks = (relation.sizes[fork] as number) / BLCKSZ;
    if (relation.persistence === 'u' && fork !== FORK_INIT) {
      report.unlogged += blocks;
      continue;
    }
    if (blocks === 0 && fork !== FORK_MAIN) continue;
    report.forks++;
    const tag = { spc: relation.spc, db: relation.db, rel: relation.node, fork };
    forks.push({ relation, rmid: resourceManagerOf(relation.relkind, relation.handler), tag, blocks });
  }
  return forks;
}

/** Runs of at most 128 blocks (what one request may ask for), together at most 256 blocks. */
function* batches(forks: readonly Fork[]): Generator<BlockRun[]> {
  let batch: BlockRun[] = [];
  let blocks = 0;
  for (const fork of forks)
    for (let from = 0; from < fork.blocks; from += RUN_BLOCKS) {
      const count = Math.min(RUN_BLOCKS, fork.blocks - from);
      if (blocks + count > BATCH_BLOCKS) {
        yield batch;
        [batch, blocks] = [[], 0];
      }
      batch.push({ fork, from, count });
      blocks += count;
    }
  if (batch.length > 0) yield batch;
}

async function compareBatch(client: pg.Client, source: PageReader, report: PageReport, batch: readonly BlockRun[]): Promise<void> {
  let ours: Buffer[];
  try {
    ours = await computePages(client, batch);
  } catch (error) {
    if (!isGone(error)) throw error;
    if (batch.length > 1) for (const run of batch) await compareBatch(client, source, report, [run]);
    return;
  }
  const stored = await Promise.all(
    batch.map((run, i) => {
      const pages = ours[i] as Buffer;
      let newest = 0;
      for (let at = 0; at < pages.length; at += BLCKSZ) newest = Math.max(newest, pageLsn(pages.subarray(at, at + BLCKSZ)));
      return source.pages(run.fork.tag, run.from, run.count, newest as Lsn);
    }),
  );
  for (const [i, run] of batch.entries()) {
    const [a, b] = [ours[i] as Buffer, stored[i] as Buffer];
    for (let at = 0; at < a.length; at += BLCKSZ) {
      const storage = b.length >= at + BLCKSZ ? b.subarray(at, at + BLCKSZ) : undefined;
      const block = run.from + at / BLCKSZ;
      if (difference(run.fork, block, a.subarray(at, at + BLCKSZ), storage, report) !== undefined)
        await settle(client, source, report, run.fork, block);
    }
  }
}

function isAllowed(report: PageReport, at: Fork): boolean {
  const allowed = ALLOWED_PAGE_DIFFERENCES.find((d) => d.fork === FORK_NAMES[at.tag.fork] && d.handler === at.relation.handler);
  if (allowed !== undefined) report.allowed.set(allowed.reason, (report.allowed.get(allowed.reason) ?? 0) + 1);
  return allowed !== undefined;
}

/** Dropped or truncated between two queries. */
const isGone = (error: unknown): boolean => /does not exist|out of range|could not open/.test((error as Error).message);

/** Storage may be shorter (the rest is empty), never longer; and it must have the fork. */
async function settleSize(client: pg.Client, source: PageReader, report: PageReport, at: Fork): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    const { rows } = await client.query<{ n: string; node: number | null }>(
      'SELECT (pg_relation_size(to_regclass($1), $2) / 8192)::text AS n, pg_relation_filenode(to_regclass($1))::int8::float8 AS node',
      [at.relation.name, FORK_NAMES[at.tag.fork]],
    );
    if (rows[0]?.node !== at.relation.node) return; // dropped or rewritten meanwhile
    const now = Number(rows[0]?.n);
    const stored = await source.size(at.tag, await flushWal(client));
    if (stored !== undefined && stored <= now) return;
    if (attempt < ATTEMPTS) continue;
    if (isAllowed(report, at)) return;
    const detail =
      stored === undefined ? `storage has no such fork, the compute has ${now} blocks` : `storage has ${stored} blocks, the compute ${now}`;
    return mismatch(client, report, at, now, 0 as Lsn, 0 as Lsn, detail);
  }
}

function difference(
  at: Fork,
  block: number,
  compute: Buffer,
  storage: Buffer | undefined,
  report: PageReport | undefined,
): string | undefined {
  const { fork } = at.tag;
  if (report !== undefined) report.pages++;
  if (fork === FORK_FSM) {
    if (report !== undefined) report.fsmPages++;
    return storage === undefined || isSoundFsmPage(storage) ? undefined : 'storage has a free space map page whose tree is wrong';
  }
  if (fork === FORK_VM) {
    if (report !== undefined) report.vmPages++;
    const [a, b] = [Buffer.from(compute), storage === undefined ? Buffer.alloc(BLCKSZ) : Buffer.from(storage)];
    maskVisibilityMap(a);
    maskVisibilityMap(b);
    if (a.equals(b)) return undefined;
    if (at.relation.node < ALLOWED_MAP_LOSS.belowNode && isSubset(b, a)) {
      if (report !== undefined) report.vmLost++;
      return undefined;
    }
    return firstDifferences(b, a);
  }
  if (isEmptyPage(compute) && (storage === undefined || isEmptyPage(storage))) {
    if (report !== undefined) report.emptyTail++;
    return undefined;
  }
  if (storage === undefined) return 'storage has no such block';
  if (at.rmid === RM_SEQ_ID) {
    if (report !== undefined) report.sequences++;
    const [a, b] = [sequenceValue(compute), sequenceValue(storage)];
    if (!sequenceAgrees(a, b, BigInt(at.relation.increment ?? 1)))
      return `compute has ${a.last} with ${a.logged} logged ahead (called ${a.called}), storage ${b.last} (${b.logged}, called ${b.called})`;
  }
  const [a, b] = [Buffer.from(compute), Buffer.from(storage)];
  try {
    maskMain(at.rmid, a, block);
    maskMain(at.rmid, b, block);
  } catch (error) {
    return a.equals(b) ? undefined : `cannot be masked: ${(error as Error).message}`;
  }
  return a.equals(b) ? undefined : firstDifferences(b, a);
}

/** Seen to differ: read again with WAL flushed, as it may have changed between the two reads. */
async function settle(client: pg.Client, source: PageReader, report: PageReport, at: Fork, block: number): Promise<void> {
  for (let attempt = 1; attempt <= ATTEMPTS; attempt++) {
    await flushWal(client);
    let ours: Buffer;
    try {
      ours = (await computePages(client, [{ fork: at, from: block, count: 1 }]))[0] as Buffer;
    } catch (error) {
      if (isGone(error)) return;
      throw error;
    }
    const stored = await source.pages(at.tag, block, 1, pageLsn(ours));
    const what = difference(at, block, ours, stored.length === 0 ? undefined : stored, undefined);
    if (what === undefined) return;
    if (attempt === ATTEMPTS && !isAllowed(report, at))
      await mismatch(client, report, at, block, pageLsn(ours), stored.length === 0 ? (0 as Lsn) : pageLsn(stored), what);
  }
}

async function mismatch(
  client: pg.Client,
  report: PageReport,
  at: Fork,
  block: number,
  computeLsn: Lsn,
  storageLsn: Lsn,
  detail: string,
): Promise<void> {
  report.mismatchCount++;
  if (report.mismatches.length >= 20) return;
  report.mismatches.push({
    relation: `${at.relation.name} (${FORK_NAMES[at.tag.fork]}, ${at.relation.handler ?? at.relation.relkind})`,
    path: relPath(at.tag),
    block,
    computeLsn: formatLsn(computeLsn),
    storageLsn: formatLsn(storageLsn),
    detail,
    records: report.mismatches.length < 5 ? await recordsOf(client, at.tag, block, report.walStart) : [],
  });
}
