/** Starts a stock Postgres of each major on a synthesised shutdown checkpoint at several kinds of X: it must come up with no recovery, go on writing at the
 *  record's end, and all WAL it writes must read back from X on with an unbroken prev chain. */
import assert from 'node:assert/strict';
import {
  chmodSync,
  closeSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { formatLsn, type Lsn, lsn, segmentNumber, WAL_SEGMENT_BYTES, walFileName } from '@lakebase/ids';
import { patchControlFile, readControlFile, synthesiseStart, WalDecoder } from '@lakebase/pg-format';
import { OracleServer } from '../oracle/server.ts';

const SEGMENT = WAL_SEGMENT_BYTES;
/** Far beyond what initdb wrote, so no page has a later LSN. */
const BASE = 8 * SEGMENT;

const POSITIONS: readonly (readonly [string, number])[] = [
  ['in the middle of a page', BASE + 5 * 8192 + 4096],
  ['on a page boundary', BASE + 7 * 8192],
  ['just behind a page header', BASE + 9 * 8192 + 24],
  ['24 bytes before a page end', BASE + SEGMENT + 11 * 8192 - 24],
  ['8 bytes before a page end', BASE + SEGMENT + 13 * 8192 - 8],
  ['so that the record ends with the page', BASE + SEGMENT + 15 * 8192 - 120],
  ['on a segment boundary', BASE + 3 * SEGMENT],
  ['just behind a segment header', BASE + 4 * SEGMENT + 40],
  ['24 bytes before a segment end', BASE + 6 * SEGMENT - 24],
  ['8 bytes before a segment end', BASE + 8 * SEGMENT - 8],
  ['so that the record ends with the segment', BASE + 10 * SEGMENT - 120],
];

/** All positions with the default major; the layout of pages and records is the same in the others, what they hold is not. */
const POSITIONS_OF_OLDER = ['in the middle of a page', '24 bytes before a page end', 'on a segment boundary'];

for (const major of [18, 17, 16])
  describe(`a start of Postgres ${major} with no recovery`, () => {
    const root = mkdtempSync('/tmp/lakebase-start-');
    chmodSync(root, 0o755);
    let server: OracleServer;

    before(() => {
      server = new OracleServer(join(root, 'data'), join(root, 'socket'), major);
      server.initdb();
      server.configure({
        listen_addresses: '',
        fsync: 'off',
        full_page_writes: 'off',
        autovacuum: 'off',
        max_wal_senders: '0',
        wal_level: 'replica',
        wal_keep_size: '1GB',
      });
    });
    after(async () => {
      await server.stop('SIGKILL');
      rmSync(root, { recursive: true, force: true });
    });

    for (const [where, at] of POSITIONS.filter(([name]) => major === 18 || POSITIONS_OF_OLDER.includes(name)))
      test(`X ${where}`, async () => {
        const controlPath = join(server.dataDir, 'global/pg_control');
        const controlBytes = readFileSync(controlPath);
        const control = readControlFile(controlBytes);
        const x = lsn(at);
        const start = synthesiseStart({
          lsn: x,
          prevRecordLsn: lsn(at - 1000 * 8),
          systemId: control.systemId,
          major,
          checkpoint: control.checkPointCopy,
        });
        const walDir = join(server.dataDir, 'pg_wal');
        for (const name of readdirSync(walDir)) if (/^[0-9A-F]{24}$/.test(name)) rmSync(join(walDir, name));
        mkdirSync(walDir, { recursive: true });
        for (const segment of start.segments) {
          const path = join(walDir, segment.fileName);
          const fd = openSync(path, 'w', 0o600);
          ftruncateSync(fd, SEGMENT);
          for (const piece of segment.pieces) writeSync(fd, piece.bytes, 0, piece.bytes.length, piece.offset);
          closeSync(fd);
          server.own(path);
        }
        writeFileSync(controlPath, patchControlFile(controlBytes, start.controlPatch));

        await server.start();
        assert.match(server.log, /database system was shut down at/);
        const client = await server.client();
        await client.query('create table if not exists t (n int); insert into t select generate_series(1, 5000)');
        assert.equal((await client.query('show lc_messages')).rows.length, 1);
        await client.query('checkpoint');
        await client.query('drop table t');
        await server.stop();

        const decoder = new WalDecoder({ startLsn: x, major, systemId: control.systemId });
        let first: { lsn: Lsn; endLsn: Lsn; prev: Lsn } | undefined;
        let count = 0;
        for (let segment = segmentNumber(x); ; segment++) {
          let bytes: Buffer;
          try {
            bytes = readFileSync(join(walDir, walFileName(segment)));
          } catch {
            break;
          }
          decoder.push(segment === segmentNumber(x) ? bytes.subarray(x % SEGMENT) : bytes);
        }
        try {
          for (let record = decoder.next(); record !== undefined; record = decoder.next()) {
            first ??= { lsn: record.lsn, endLsn: record.endLsn, prev: record.prev };
            count++;
          }
        } catch (error) {
          assert.match((error as Error).message, /not written|recycled/);
        }
        assert.deepEqual(first, { lsn: start.recordLsn, endLsn: start.endLsn, prev: at - 8000 });
        assert.ok(count > 5000, `${count} records`);
        // The shutdown checkpoint of this run is the last record, where pg_control now points.
        assert.equal(formatLsn(decoder.lastRecordLsn), formatLsn(readControlFile(readFileSync(controlPath)).checkPoint));
      });
  });
