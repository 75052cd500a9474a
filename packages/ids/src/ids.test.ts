import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import {
  alignLsn,
  formatLsn,
  lsn,
  lsnFromHalves,
  lsnHigh,
  lsnLow,
  pageHeaderBytes,
  parseLsn,
  parseProjectUid,
  parseRelPath,
  parseTerm,
  parseTimelineId,
  RELSEG_BLOCKS,
  recordStartAt,
  relPath,
  tablespaceDirectory,
  RESOURCE_ID,
  walFileName,
} from './index.ts';

const anyLsn = fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER }).map(lsn);

describe('Lsn', () => {
  it('prints and parses as Postgres does', () => {
    assert.equal(formatLsn(parseLsn('16/B374D848')), '16/B374D848');
    assert.equal(parseLsn('0/0'), 0);
    fc.assert(fc.property(anyLsn, (x) => parseLsn(formatLsn(x)) === x && lsnFromHalves(lsnHigh(x), lsnLow(x)) === x));
  });
  it('refuses what is not an LSN', () => {
    for (const text of ['', '0', '/', '0/', '/0', 'g/0', '0/123456789', '-1/0', '0/0 ', 'FFFFFFFF/FFFFFFFF'])
      assert.throws(() => parseLsn(text), { code: 'INVALID_LSN' }, text);
    for (const n of [-1, 1.5, Number.NaN, 2 ** 53]) assert.throws(() => lsn(n), { code: 'INVALID_LSN' });
  });
  it('knows where records start', () => {
    assert.equal(recordStartAt(0x1000000), 0x1000000 + 40);
    assert.equal(recordStartAt(0x1002000), 0x1002000 + 24);
    assert.equal(recordStartAt(0x1002020), 0x1002020);
    assert.equal(recordStartAt(0x1001ff9), 0x1002000 + 24);
    assert.equal(pageHeaderBytes(0x1000000), 40);
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 2 ** 52 }).map(lsn), (x) => alignLsn(x) % 8 === 0 && alignLsn(x) >= x && alignLsn(x) < x + 8),
    );
  });
  it('names WAL files as XLogFileName', () => {
    assert.equal(walFileName(1), '000000010000000000000001');
    assert.equal(walFileName(255), '0000000100000000000000FF');
    assert.equal(walFileName(256), '000000010000000100000000');
  });
});

describe('names', () => {
  it('lets nothing through that could leave a path', () => {
    for (const bad of [
      '',
      '..',
      '../x',
      'A'.repeat(32),
      'a'.repeat(31),
      'a'.repeat(33),
      `${'a'.repeat(31)}/`,
      `${'a'.repeat(31)}\0`,
      5,
      null,
      undefined,
      {},
    ]) {
      assert.throws(() => parseProjectUid(bad), { code: 'INVALID_ID' });
      assert.throws(() => parseTimelineId(bad), { code: 'INVALID_ID' });
    }
    assert.equal(parseProjectUid('0123456789abcdef0123456789abcdef'), '0123456789abcdef0123456789abcdef');
    for (const bad of [-1, 0.5, '1', Number.NaN]) assert.throws(() => parseTerm(bad), { code: 'INVALID_ID' });
  });
  it('has the resource id pattern of the Databricks API', () => {
    for (const good of ['a', 'my-project', 'a1', 'a'.repeat(63)]) assert.match(good, RESOURCE_ID);
    for (const bad of ['', '-a', 'a-', 'A', '1a', 'a'.repeat(64), 'a_b', 'a/b', 'a.b']) assert.doesNotMatch(bad, RESOURCE_ID);
  });
});

describe('relation paths', () => {
  it('are what md.c makes of them', () => {
    assert.equal(relPath({ spc: 1663, db: 5, rel: 16384, fork: 0 }), 'base/5/16384');
    assert.equal(relPath({ spc: 1663, db: 5, rel: 16384, fork: 2 }, 1), 'base/5/16384_vm.1');
    assert.equal(relPath({ spc: 1664, db: 0, rel: 1262, fork: 1 }), 'global/1262_fsm');
    const own = { spc: 16400, db: 5, rel: 16384, fork: 2 } as const;
    assert.equal(relPath(own, 1, tablespaceDirectory(18, 202506291)), 'pg_tblspc/16400/PG_18_202506291/5/16384_vm.1');
    assert.deepEqual(parseRelPath('pg_tblspc/16400/PG_18_202506291/5/16384_vm.1'), { tag: own, segment: 1 });
    assert.equal(RELSEG_BLOCKS * 8192, 2 ** 30);
  });
  it('parse back, and nothing else parses', () => {
    for (const path of ['base/5/16384', 'base/5/16384_vm.1', 'global/1262_fsm', 'base/1/2619_init']) {
      const parsed = parseRelPath(path);
      assert.ok(parsed);
      assert.equal(relPath(parsed.tag, parsed.segment), path);
    }
    for (const path of [
      'base/5/t3_16384',
      'base/5/pg_filenode.map',
      'pg_xact/0000',
      'base/5/16384_foo',
      'base/../5/1',
      'base/5/16384.',
      '/base/5/1',
      'base/5/1\n',
      'pg_tblspc/16400/PG_18_1/pgsql_tmp/1',
      'pg_tblspc/16400/5/1',
    ])
      assert.equal(parseRelPath(path), undefined, path);
  });
});
