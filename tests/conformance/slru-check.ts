/** Transaction status and multixacts: what the compute answers for each id against storage's CLOG and multixact pages, taken from the start bundle
 *  (what the next compute would start from). Through SQL, so that it holds whatever form the compute's own files have. */
import { BLCKSZ, type Lsn, parseLsn } from '@lakebase/ids';
import type { StartBundle } from '@lakebase/api';
import type pg from 'pg';
import { flushWal } from './page-check.ts';
import type { PageSource } from './page-source.ts';

export interface SlruReport {
  xids: number;
  multixacts: number;
  mismatches: string[];
}

const COMMITTED = 1;
const OFFSETS_PER_PAGE = 2_048;
const MEMBERS_PER_GROUP = 4;
const GROUP_BYTES = 20;
const GROUPS_PER_PAGE = 409;
const SEGMENT_BYTES = 32 * BLCKSZ;
const MODES = ['keysh', 'sh', 'fornokeyupd', 'forupd', 'nokeyupd', 'upd'] as const;

/** A start bundle as of the head: asked again while WAL goes on. */
export async function headBundle(source: PageSource, head: () => Promise<Lsn>): Promise<StartBundle> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await source.startBundle(await head());
    } catch (error) {
      if (attempt === 20) throw error;
    }
  }
}

export async function checkSlru(client: pg.Client, source: PageSource, head: () => Promise<Lsn>): Promise<SlruReport> {
  const report: SlruReport = { xids: 0, multixacts: 0, mismatches: [] };
  // Both ends before the bundle: whatever is decided by now is in it.
  const { rows: before } = await client.query<{ next: string }>('SELECT pg_snapshot_xmin(pg_current_snapshot())::text AS next');
  await client.query('CHECKPOINT');
  const { rows: control } = await client.query<{ oldest: number; next_multi: number; oldest_multi: number }>(
    `SELECT oldest_xid::text::int8::float8 AS oldest, next_multixact_id::text::int8::float8 AS next_multi, oldest_multi_xid::text::int8::float8 AS oldest_multi
     FROM pg_control_checkpoint()`,
  );
  const flushed = await flushWal(client);
  const bundle = await headBundle(source, async () => {
    const at = await head();
    return at >= flushed ? at : flushed;
  });
  const { oldest, next_multi: nextMulti, oldest_multi: oldestMulti } = control[0] as (typeof control)[number];
  await checkXids(client, bundle, report, oldest, Number(before[0]?.next));
  await checkMultixacts(client, bundle, report, oldestMulti, nextMulti);
  return report;
}

async function checkXids(client: pg.Client, bundle: StartBundle, report: SlruReport, oldest: number, next: number): Promise<void> {
  const epoch = Math.floor(next / 0x1_0000_0000);
  const first = Math.max(3, oldest > next % 0x1_0000_0000 ? oldest + (epoch - 1) * 0x1_0000_0000 : oldest + epoch * 0x1_0000_0000);
  const { rows } = await client.query<{ states: string }>(
    `SELECT string_agg(coalesce(left(pg_xact_status(x::text::xid8), 1), '-'), '' ORDER BY x) AS states FROM generate_series($1::int8, $2::int8) x`,
    [first, next - 1],
  );
  const states = rows[0]?.states ?? '';
  for (let i = 0; i < states.length; i++) {
    const state = states[i];
    const xid = (first + i) % 0x1_0000_0000;
    if (state === '-' || state === 'i') continue;
    report.xids++;
    const stored = (byteOf(bundle, 'pg_xact', Math.floor(xid / 4)) >>> ((xid % 4) * 2)) & 3;
    if ((state === 'c') !== (stored === COMMITTED))
      report.mismatches.push(`xid ${xid}: the compute says ${state}, storage has status ${stored}`);
  }
}

async function checkMultixacts(client: pg.Client, bundle: StartBundle, report: SlruReport, oldest: number, next: number): Promise<void> {
  if (next <= oldest) return;
  const { rows } = await client.query<{ mxid: number; members: string }>(
    `SELECT m::float8 AS mxid, (SELECT string_agg(xid::text || ':' || mode, ',') FROM pg_get_multixact_members(m::text::xid)) AS members
     FROM generate_series($1::int8, $2::int8) m`,
    [oldest, next - 1],
  );
  for (const { mxid, members } of rows) {
    report.multixacts++;
    const from = offsetOf(bundle, mxid);
    const count = members.split(',').length;
    const stored: string[] = [];
    for (let i = 0; i < count; i++) stored.push(memberAt(bundle, from + i));
    if (stored.join(',') !== members) report.mismatches.push(`multixact ${mxid}: the compute has ${members}, storage ${stored.join(',')}`);
  }
}

const offsetOf = (bundle: StartBundle, mxid: number): number => {
  const at = Math.floor(mxid / OFFSETS_PER_PAGE) * BLCKSZ + (mxid % OFFSETS_PER_PAGE) * 4;
  return word(bundle, 'pg_multixact/offsets', at);
};

function memberAt(bundle: StartBundle, offset: number): string {
  const group = Math.floor(offset / MEMBERS_PER_GROUP);
  const at = Math.floor(group / GROUPS_PER_PAGE) * BLCKSZ + (group % GROUPS_PER_PAGE) * GROUP_BYTES;
  const flags = byteOf(bundle, 'pg_multixact/members', at + (offset % MEMBERS_PER_GROUP));
  const xid = word(bundle, 'pg_multixact/members', at + 4 + (offset % MEMBERS_PER_GROUP) * 4);
  return `${xid}:${MODES[flags & 7] ?? `mode ${flags}`}`;
}

function byteOf(bundle: StartBundle, dir: string, at: number): number {
  const name = `${dir}/${Math.floor(at / SEGMENT_BYTES)
    .toString(16)
    .toUpperCase()
    .padStart(4, '0')}`;
  return bundle.files.find((f) => f.path === name)?.bytes[at % SEGMENT_BYTES] ?? 0;
}

const word = (bundle: StartBundle, dir: string, at: number): number =>
  (byteOf(bundle, dir, at) |
    (byteOf(bundle, dir, at + 1) << 8) |
    (byteOf(bundle, dir, at + 2) << 16) |
    (byteOf(bundle, dir, at + 3) << 24)) >>>
  0;

export const headOf = (status: { readonly lastRecordLsn: string }): Lsn => parseLsn(status.lastRecordLsn);
