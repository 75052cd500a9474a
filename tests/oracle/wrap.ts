/** Takes a fresh cluster to where its 32-bit ids are about to start over: transactions (in a late epoch), multixacts, multixact members.
 *  It goes there in steps of less than half the cycle, freezing everything at each: as a real cluster does, and so that no catalog holds
 *  an id from what would then be the future. Needs pg_resetwal, which the npm builds do not have.
 *  Invariant: pg_resetwal moves counters only; the SLRU pages they then stand on are made here, of zeros, as its manual asks for. */
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { CLOG_XACTS_PER_PAGE, COMMIT_TS_XACTS_PER_PAGE, MULTIXACT_MEMBERS_PER_PAGE, MULTIXACT_OFFSETS_PER_PAGE } from '@lakebase/pg-redo';
import type { OracleServer } from './server.ts';
import { each } from './workload.ts';
import { freezeDatabases } from './workload-cluster.ts';

const CYCLE = 0x1_0000_0000;
/** The last stop is close enough for the workload to pass the end of each cycle. */
const STOPS = [1_500_000_000, 3_000_000_000, 0] as const;
const LAST = { xid: CYCLE - 9_000, multi: CYCLE - 700, member: CYCLE - 1_500 };
/** pg_resetwal sets the epoch of the next transaction. */
const EPOCH = 6;
const SEGMENT_BYTES = 32 * 8192;

export async function nearWraparound(server: OracleServer, resetwal: string): Promise<void> {
  let before = { xid: 3, multi: 1 };
  for (const [i, stop] of STOPS.entries()) {
    const next = i === STOPS.length - 1 ? LAST : { xid: stop, multi: stop, member: stop };
    for (const [dir, page] of [
      ['pg_xact', next.xid / CLOG_XACTS_PER_PAGE],
      ['pg_commit_ts', next.xid / COMMIT_TS_XACTS_PER_PAGE],
      ['pg_multixact/offsets', next.multi / MULTIXACT_OFFSETS_PER_PAGE],
      ['pg_multixact/members', next.member / MULTIXACT_MEMBERS_PER_PAGE],
    ] as const)
      zeroSegment(server, dir, Math.floor(page / 32));
    const id = (n: number): string => String(n);
    const args = [
      '-x',
      id(next.xid),
      '-u',
      id(before.xid),
      '-e',
      id(EPOCH),
      '-m',
      `${id(next.multi)},${id(before.multi)}`,
      '-O',
      id(next.member),
    ];
    server.run(resetwal, ['-D', server.dataDir, ...args]);
    await server.start();
    const db = await server.client();
    await freezeDatabases(server, db);
    await server.stop();
    before = { xid: next.xid, multi: next.multi };
  }
}

function zeroSegment(server: OracleServer, dir: string, segment: number): void {
  const path = join(server.dataDir, dir, segment.toString(16).toUpperCase().padStart(4, '0'));
  if (existsSync(path)) return;
  mkdirSync(join(server.dataDir, dir), { recursive: true });
  writeFileSync(path, Buffer.alloc(SEGMENT_BYTES));
  server.own(path);
}

/** A transaction prepared before the end of the cycle and committed after it: its file is named by the epoch it began in. Subtransactions
 *  of one transaction on both sides of the end, committed and aborted. */
export async function acrossTheEnd(server: OracleServer): Promise<void> {
  const db = await server.client();
  const burn = (n: number): string =>
    `DO $$ BEGIN FOR i IN 1..${n} LOOP BEGIN INSERT INTO across VALUES (i); EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$`;
  await each(db, [
    'CREATE TABLE across(i int)',
    'BEGIN',
    'INSERT INTO across VALUES (0)',
    "PREPARE TRANSACTION 'across'",
    'BEGIN',
    'INSERT INTO across VALUES (0)',
    "PREPARE TRANSACTION 'given up'",
    'CHECKPOINT',
    burn(CYCLE - LAST.xid - 500),
    'BEGIN',
    burn(600),
    'ABORT',
    burn(2000),
    'CHECKPOINT',
    "COMMIT PREPARED 'across'",
    "ROLLBACK PREPARED 'given up'",
  ]);
  await server.close(db);
}
