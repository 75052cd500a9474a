/** All WAL of a workload on a stock Postgres of each major: every record decodes, the list is pg_waldump's where that tool is present, and mutated copies of the
 *  records lead to a page, CORRUPT or UNSUPPORTED, never to anything else. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { isCode } from '@lakebase/base';
import { formatLsn, type Lsn, lsn, WAL_SEGMENT_BYTES } from '@lakebase/ids';
import {
  copyRecord,
  type DecodedRecord,
  decodeRecord,
  endOfRecord,
  newDecodedRecord,
  patchControlFile,
  readControlFile,
  rmgrName,
  setPageLsn,
  WalDecoder,
} from '@lakebase/pg-format';
import { emitEffects, redo } from '@lakebase/pg-redo';
import { findToolOfMajor } from '@lakebase/testkit';
import { OracleServer } from '../oracle/server.ts';

const WORKLOAD = [
  'create table t (id serial primary key, k int, v text)',
  'create index on t (k)',
  "insert into t (k, v) select i % 10, repeat('x', i % 300) from generate_series(1, 8000) i",
  'update t set k = k + 1 where id % 7 = 0',
  'delete from t where id % 3 = 0',
  'vacuum t',
  'checkpoint',
  "update t set v = v || 'y' where id % 11 = 0",
  'select count(*) from (select * from t for share) s',
  'truncate t',
  'drop table t',
];

/** Deterministic noise, so that a failure can be repeated. */
function noise(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 0x1_0000_0000;
  };
}

for (const major of [18, 17, 16])
  describe(`WAL of a stock Postgres ${major}`, () => {
    const waldump = findToolOfMajor('pg_waldump', major);
    const root = mkdtempSync('/tmp/lakebase-decode-');
    chmodSync(root, 0o755);
    let server: OracleServer;
    let systemId = 0n;
    let shutdownLsn = 0 as Lsn;

    before(async () => {
      server = new OracleServer(join(root, 'data'), join(root, 'socket'), major);
      server.initdb();
      server.configure({
        listen_addresses: '',
        fsync: 'off',
        wal_keep_size: '1GB',
        max_connections: '23',
        track_commit_timestamp: 'on',
        wal_compression: 'pglz',
      });
      await server.start();
      const client = await server.client();
      for (const sql of WORKLOAD) await client.query(sql);
      await server.stop();
      const control = readControlFile(readFileSync(join(server.dataDir, 'global/pg_control')));
      systemId = control.systemId;
      shutdownLsn = control.checkPoint;
    });
    after(async () => {
      await server.stop('SIGKILL');
      rmSync(root, { recursive: true, force: true });
    });

    const walDir = (): string => join(server.dataDir, 'pg_wal');

    function* records(): Generator<DecodedRecord> {
      const decoder = new WalDecoder({ startLsn: lsn(WAL_SEGMENT_BYTES), major, systemId });
      for (const name of readdirSync(walDir())
        .filter((n) => /^[0-9A-F]{24}$/.test(n))
        .sort()) {
        const bytes = readFileSync(join(walDir(), name));
        for (let at = 0; at < bytes.length; at += 100_001) decoder.push(bytes.subarray(at, at + 100_001));
      }
      for (;;) {
        if (decoder.lastRecordLsn === shutdownLsn) return;
        const record = decoder.next();
        assert.ok(record, 'the WAL ends before the shutdown checkpoint');
        yield record;
      }
    }

    test('the control file reads and patches back to itself', () => {
      const bytes = readFileSync(join(server.dataDir, 'global/pg_control'));
      const control = readControlFile(bytes);
      assert.equal(control.state, 1);
      assert.equal(control.parameters.maxConnections, 23);
      assert.equal(control.parameters.trackCommitTimestamp, true);
      assert.equal(control.checkPointCopy.redo, control.checkPoint);
      assert.equal(control.walSegmentBytes, WAL_SEGMENT_BYTES);
      assert.ok(patchControlFile(bytes, { ...control, systemId: control.systemId }).equals(bytes));
      bytes[100] = (bytes[100] as number) ^ 1;
      assert.throws(
        () => readControlFile(bytes),
        (e) => isCode(e, 'CORRUPT'),
      );
    });

    test('every record has effects', () => {
      const counts = new Map<string, number>();
      const sink = new Proxy({}, { get: (_t, name) => (name === 'commitTimestamps' ? true : () => {}) });
      for (const record of records()) {
        counts.set(rmgrName(record.rmid), (counts.get(rmgrName(record.rmid)) ?? 0) + 1);
        emitEffects(record, major, sink as Parameters<typeof emitEffects>[2]);
      }
      for (const name of ['XLOG', 'Transaction', 'Storage', 'Standby', 'Heap', 'Heap2', 'Btree', 'Sequence'])
        assert.ok((counts.get(name) ?? 0) > 0, name);
    });

    test('the list of records is pg_waldump’s', {
      skip: waldump === undefined ? `no pg_waldump of major ${major} on this machine` : false,
    }, () => {
      const text = execFileSync(waldump as string, ['-p', walDir(), '-s', '0/1000000', '-e', formatLsn(endOfRecord(shutdownLsn, 114))], {
        encoding: 'utf8',
        maxBuffer: 1 << 30,
      });
      const lines = text.split('\n').filter((line) => line.startsWith('rmgr:'));
      let n = 0;
      for (const record of records()) {
        const m = /^rmgr: (\S+) +len \(rec\/tot\): +\d+\/ *(\d+), tx: +(\d+), lsn: ([0-9A-F/]+), prev ([0-9A-F/]+)/.exec(lines[n++] ?? '');
        assert.ok(m, `record ${formatLsn(record.lsn)} is not in the list`);
        const trim = (text: string | undefined): string => String(text).replace(/\/0+(?=[0-9A-F])/, '/');
        assert.deepEqual(
          [m[1], Number(m[2]), Number(m[3]), trim(m[4]), trim(m[5])],
          [rmgrName(record.rmid), record.length, record.xid, formatLsn(record.lsn), formatLsn(record.prev)],
        );
      }
      assert.equal(n, lines.length);
    });

    test('mutated records are applied or refused', {
      skip: major !== 18 ? 'once is enough: `npm run fuzz` does it for every major' : false,
    }, () => {
      const random = noise(1);
      const int = (n: number): number => Math.floor(random() * n);
      const pages: Buffer[] = [];
      const dir = join(server.dataDir, 'base/1');
      for (const name of readdirSync(dir)
        .filter((n) => /^\d+$/.test(n))
        .slice(0, 60)) {
        const file = readFileSync(join(dir, name));
        for (let at = 0; at + 8192 <= file.length && at < 4 * 8192; at += 8192) pages.push(file.subarray(at, at + 8192));
      }
      const sink = new Proxy({}, { get: () => () => {} }) as Parameters<typeof emitEffects>[2];
      const scratch = newDecodedRecord();
      const page = Buffer.alloc(8192);
      const tally = { applied: 0, refused: 0, undecodable: 0 };
      let n = 0;
      for (const original of records()) {
        if (n++ % 30 !== 0 && (original.rmid === 10 || original.rmid === 11)) continue; // there are plenty of heap and btree records
        const copy = copyRecord(original);
        for (let round = 0; round < 3; round++) {
          const bytes = Buffer.from(copy.buf);
          for (let edits = 1 + int(3); edits > 0; edits--)
            bytes[24 + int(Math.min(bytes.length - 24, 200))] = int(3) === 0 ? int(256) : int(16);
          try {
            const record = decodeRecord(bytes, 0, bytes.length, copy.lsn, copy.endLsn, scratch);
            emitEffects(record, major, sink);
            for (let id = 0; id <= record.maxBlockId; id++) {
              if (record.blocks[id]?.inUse !== true) continue;
              (pages[int(pages.length)] as Buffer).copy(page);
              setPageLsn(page, lsn(0));
              redo(page, record, id, major);
            }
            tally.applied++;
          } catch (error) {
            assert.ok(
              isCode(error, 'CORRUPT') || isCode(error, 'UNSUPPORTED'),
              error instanceof Error ? (error.stack ?? '') : String(error),
            );
            tally.refused++;
          }
        }
      }
      assert.ok(tally.applied > 100 && tally.refused > 100, JSON.stringify(tally));
    });
  });
