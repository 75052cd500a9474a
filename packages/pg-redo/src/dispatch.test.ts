import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { isCode } from '@lakebase/base';
import { crc32c } from '@lakebase/bytes';
import { lsn } from '@lakebase/ids';
import {
  type DecodedRecord,
  decodeRecord,
  encodeCheckPoint,
  initPage,
  newDecodedRecord,
  pageLsn,
  RM_BRIN_ID,
  RM_BTREE_ID,
  RM_CLOG_ID,
  RM_DBASE_ID,
  RM_GENERIC_ID,
  RM_GIN_ID,
  RM_GIST_ID,
  RM_HASH_ID,
  RM_MULTIXACT_ID,
  RM_RELMAP_ID,
  RM_SEQ_ID,
  RM_SMGR_ID,
  RM_SPGIST_ID,
  RM_TBLSPC_ID,
  RM_XACT_ID,
  RM_XLOG_ID,
} from '@lakebase/pg-format';
import { emitEffects, redo } from './dispatch.ts';
import { SLRU_COMMIT_TS, SLRU_MULTIXACT_MEMBERS, SLRU_MULTIXACT_OFFSETS, SLRU_XACT } from './effects.ts';
import { simpleRecord } from './testing/record-maker.ts';
import { type Call, recordingSink } from './testing/recording-sink.ts';

const decode = (bytes: Buffer): DecodedRecord => decodeRecord(bytes, 0, bytes.length, lsn(0x1000), lsn(0x1100), newDecodedRecord());

function effects(fields: Parameters<typeof simpleRecord>[0], options: { major?: number; commitTimestamps?: boolean } = {}): Call[] {
  const { sink, calls } = recordingSink(options.commitTimestamps === undefined ? {} : { commitTimestamps: options.commitTimestamps });
  emitEffects(decode(simpleRecord(fields)), options.major ?? 18, sink);
  return calls;
}

const u32 = (...values: number[]): Buffer => {
  const out = Buffer.alloc(values.length * 4);
  values.forEach((v, i) => out.writeUInt32LE(v >>> 0, i * 4));
  return out;
};
const TIME = Buffer.from('0807060504030201', 'hex');

describe('transactions', () => {
  test('a plain commit is one status delta, and one timestamp delta unless told off', () => {
    assert.deepEqual(effects({ rmid: RM_XACT_ID, info: 0x00, xid: 777, main: TIME }, { commitTimestamps: false }), [
      ['slruDelta', SLRU_XACT, 0, '01010903'],
    ]);
    assert.deepEqual(effects({ rmid: RM_XACT_ID, info: 0x00, xid: 777, main: TIME }), [
      ['slruDelta', SLRU_XACT, 0, '01010903'],
      ['slruDelta', SLRU_COMMIT_TS, 0, '04080706050403020100000903'],
      ['counters', { seenXid: 777, newestCommitTsXid: 777 }],
    ]);
  });

  test('subtransactions on two pages, dropped relations, statistics of either width, messages', () => {
    for (const [major, statBytes] of [
      [17, 12],
      [18, 16],
    ] as const) {
      const main = Buffer.concat([
        TIME,
        u32(0x01 | 0x02 | 0x04 | 0x08 | 0x100), // dbinfo, subxacts, relations, messages, statistics
        u32(5, 1663),
        u32(2, 32_767, 32_769),
        u32(1, 1663, 5, 16_400),
        u32(1),
        Buffer.alloc(statBytes),
        u32(1),
        Buffer.alloc(16),
      ]);
      assert.deepEqual(effects({ rmid: RM_XACT_ID, info: 0x80, xid: 32_766, main }, { major, commitTimestamps: false }), [
        ['slruDelta', SLRU_XACT, 0, '0101fe7fff7f'],
        ['slruDelta', SLRU_XACT, 1, '01010100'],
        ['counters', { seenXid: 32_769 }],
        ['relDrop', 1663, 5, 16_400],
      ]);
    }
  });

  test('ending a prepared transaction takes its xid from the record', () => {
    const main = Buffer.concat([TIME, u32(0x10 | 0x80 | 0x20), u32(900), Buffer.from('gid\0'), u32(0x500, 0x2), TIME]);
    assert.deepEqual(effects({ rmid: RM_XACT_ID, info: 0xc0, xid: 901, main }), [
      ['slruDelta', SLRU_XACT, 0, '01028403'],
      ['counters', { seenXid: 900 }],
      ['originAdvance', 0, 0x2_0000_0500],
      ['twophaseDelete', 900],
    ]);
  });

  test('a list longer than the record is CORRUPT', () => {
    const main = Buffer.concat([TIME, u32(0x02), u32(0x7fff_ffff), u32(1)]);
    assert.throws(
      () => effects({ rmid: RM_XACT_ID, info: 0x80, xid: 5, main }),
      (e) => isCode(e, 'CORRUPT') && /0\/1000/.test(e.message),
    );
    const negative = Buffer.concat([TIME, u32(0x02), u32(-1)]);
    assert.throws(
      () => effects({ rmid: RM_XACT_ID, info: 0x80, xid: 5, main: negative }),
      (e) => isCode(e, 'CORRUPT'),
    );
  });
});

test('multixact creation across both page boundaries', () => {
  const main = u32(2047, 1635, 2, 100, 0, 101, 5);
  assert.deepEqual(effects({ rmid: RM_MULTIXACT_ID, info: 0x20, main }), [
    ['slruDelta', SLRU_MULTIXACT_OFFSETS, 0, '02ff0763060000'],
    ['slruDelta', SLRU_MULTIXACT_OFFSETS, 1, '02000065060000'],
    ['slruDelta', SLRU_MULTIXACT_MEMBERS, 0, '0363066400000000'],
    ['slruDelta', SLRU_MULTIXACT_MEMBERS, 1, '0300006500000005'],
    ['counters', { nextMulti: 2048, nextMultiOffset: 1637, seenXid: 101 }],
  ]);
});

test('SLRU page numbers are 8 bytes since 17', () => {
  assert.deepEqual(effects({ rmid: RM_CLOG_ID, info: 0x00, main: u32(9, 0) }), [['slruZero', SLRU_XACT, 9]]);
  assert.deepEqual(effects({ rmid: RM_CLOG_ID, info: 0x10, main: u32(9, 800, 5) }, { major: 16 }), [
    ['slruTruncate', SLRU_XACT, 9],
    ['counters', { oldestXid: 800, oldestXidDb: 5 }],
  ]);
});

test('what cannot be replayed is refused with a way out', () => {
  for (const rmid of [22 + 106, 255])
    assert.throws(
      () => effects({ rmid, info: 0, main: Buffer.alloc(20) }),
      (e) => isCode(e, 'UNSUPPORTED') && /0\/1000/.test(e.message),
      `rmgr ${rmid}`,
    );
});

test('records of every index type name their blocks and nothing else', () => {
  for (const rmid of [RM_HASH_ID, RM_GIN_ID, RM_GIST_ID, RM_SPGIST_ID, RM_BRIN_ID])
    assert.deepEqual(effects({ rmid, info: 0x20, blocks: [{ id: 0 }, { id: 2, data: Buffer.alloc(4) }] }), [
      ['block', 0],
      ['block', 2],
    ]);
});

describe('XLOG', () => {
  const checkpoint = encodeCheckPoint({
    redo: lsn(0x900),
    thisTimeline: 1,
    prevTimeline: 1,
    fullPageWrites: false,
    walLevel: 1,
    nextFullXid: 2 ** 32 + 3,
    nextOid: 20_000,
    nextMulti: 7,
    nextMultiOffset: 21,
    oldestXid: 730,
    oldestXidDb: 1,
    oldestMulti: 2,
    oldestMultiDb: 4,
    time: 99,
    oldestCommitTsXid: 0,
    newestCommitTsXid: 0,
    oldestActiveXid: 733,
  });

  test('a shutdown checkpoint is taken as it is, an online one as minimums, without the stale oid', () => {
    const [, shutdown] = effects({ rmid: RM_XLOG_ID, info: 0x00, main: checkpoint })[0] as [string, Record<string, number>];
    assert.deepEqual([shutdown['nextFullXid'], shutdown['nextOid'], shutdown['seenXid']], [2 ** 32 + 3, 20_000, undefined]);
    const [, online] = effects({ rmid: RM_XLOG_ID, info: 0x10, main: checkpoint })[0] as [string, Record<string, number>];
    assert.deepEqual(
      [online['nextFullXid'], online['nextOid'], online['seenXid'], online['nextMulti']],
      [undefined, undefined, 0xffff_ffff, 7],
    );
    assert.throws(
      () => effects({ rmid: RM_XLOG_ID, info: 0x00, main: checkpoint.subarray(0, 87) }),
      (e) => isCode(e, 'CORRUPT'),
    );
  });

  test('the next oid, and the records that change nothing stored', () => {
    assert.deepEqual(effects({ rmid: RM_XLOG_ID, info: 0x30, main: u32(33_000) }), [['counters', { nextOid: 33_000 }]]);
    for (const info of [0x20, 0x40, 0x50, 0x70, 0x80, 0x90, 0xa0, 0xd0, 0xe0])
      assert.deepEqual(effects({ rmid: RM_XLOG_ID, info, main: Buffer.alloc(32) }), [], `info ${info.toString(16)}`);
  });

  test('switching commit timestamps off forgets their range', () => {
    const main = Buffer.concat([u32(100, 8, 10, 0, 64, 1), Buffer.from([1, 0, 0, 0])]);
    const calls = effects({ rmid: RM_XLOG_ID, info: 0x60, main });
    assert.equal((calls[0]?.[1] as Record<string, unknown> | undefined)?.['walLogHints'], true);
    assert.deepEqual(calls[1], ['counters', { oldestCommitTsXid: 0, newestCommitTsXid: 0 }]);
  });
});

describe('files', () => {
  test('truncation cuts each fork and clears the tails of the maps', () => {
    const calls = effects({ rmid: RM_SMGR_ID, info: 0x20, main: u32(100, 1663, 5, 16_384, 7) });
    assert.deepEqual(
      calls.filter(([name]) => name === 'relTruncate').map(([, tag, blocks]) => [(tag as { fork: number }).fork, blocks]),
      [
        [0, 100],
        [1, 3],
        [2, 1],
      ],
    );
    assert.ok(calls.some(([name, tag]) => name === 'relDelta' && (tag as { fork: number }).fork === 2));
  });

  test('databases: copied, created, dropped from each tablespace', () => {
    assert.deepEqual(effects({ rmid: RM_DBASE_ID, info: 0x00, main: u32(50, 1663, 1, 1663) }), [
      ['dbCopy', { db: 1, spc: 1663 }, { db: 50, spc: 1663 }],
    ]);
    assert.deepEqual(effects({ rmid: RM_DBASE_ID, info: 0x10, main: u32(50, 1663) }), [['dbCreate', 1663, 50]]);
    assert.deepEqual(effects({ rmid: RM_DBASE_ID, info: 0x20, main: u32(50, 1, 1663) }), [['dbDrop', 1663, 50]]);
    assert.throws(
      () => effects({ rmid: RM_DBASE_ID, info: 0x20, main: u32(50, 2, 1663) }),
      (e) => isCode(e, 'CORRUPT'),
    );
  });

  test('tablespaces: their directory is their database 0', () => {
    assert.deepEqual(effects({ rmid: RM_TBLSPC_ID, info: 0x00, main: Buffer.concat([u32(16_400), Buffer.from('/data\0')]) }), [
      ['dbCreate', 16_400, 0],
    ]);
    assert.deepEqual(effects({ rmid: RM_TBLSPC_ID, info: 0x10, main: u32(16_400) }), [['dbDrop', 16_400, 0]]);
    assert.throws(
      () => effects({ rmid: RM_TBLSPC_ID, info: 0x00, main: Buffer.alloc(3) }),
      (e) => isCode(e, 'CORRUPT'),
    );
  });

  test('a relation map of another size is CORRUPT', () => {
    assert.throws(
      () => effects({ rmid: RM_RELMAP_ID, info: 0, main: Buffer.concat([u32(5, 1663, 512), Buffer.alloc(524)]) }),
      (e) => isCode(e, 'CORRUPT'),
    );
    const map = Buffer.concat([u32(0x592717, 2), Buffer.alloc(512, 3)]);
    const whole = Buffer.concat([map, u32(crc32c(map))]);
    const calls = effects({ rmid: RM_RELMAP_ID, info: 0, main: Buffer.concat([u32(0, 1664, 524), whole]) });
    assert.deepEqual(calls[0], ['relmap', 1664, 0, whole.toString('hex')]);
  });
});

describe('redo', () => {
  test('a page at or past the record stays', () => {
    const record = decode(simpleRecord({ rmid: RM_GENERIC_ID, info: 0, blocks: [{ id: 0, data: Buffer.from([100, 0, 2, 0, 7, 8]) }] }));
    const page = Buffer.alloc(8192);
    initPage(page, 0);
    page.writeUInt16LE(200, 12);
    redo(page, record, 0, 18);
    assert.equal(pageLsn(page), 0x1100);
    assert.deepEqual([page[100], page[101]], [7, 8]);
    const after = Buffer.from(page);
    redo(page, record, 0, 18);
    assert.ok(page.equals(after));
  });

  test('an uninitialised page is refused unless the record makes it', () => {
    const change = decode(simpleRecord({ rmid: RM_GENERIC_ID, info: 0, blocks: [{ id: 0, data: Buffer.from([100, 0, 1, 0, 7]) }] }));
    assert.throws(
      () => redo(Buffer.alloc(8192), change, 0, 18),
      (e) => isCode(e, 'CORRUPT') && /not initialised/.test(e.message),
    );
    const seq = decode(simpleRecord({ rmid: RM_SEQ_ID, info: 0, blocks: [{ id: 0, willInit: true }], main: Buffer.alloc(60, 1) }));
    const page = Buffer.alloc(8192, 5);
    redo(page, seq, 0, 18);
    assert.equal(page.readUInt32LE(8184), 0x1717);
    assert.throws(
      () => redo(page, seq, 1, 18),
      (e) => isCode(e, 'CORRUPT'),
    );
  });

  test('a run of generic WAL that leaves the page is CORRUPT', () => {
    const page = Buffer.alloc(8192);
    initPage(page, 0);
    const record = decode(simpleRecord({ rmid: RM_GENERIC_ID, info: 0, blocks: [{ id: 0, data: Buffer.from([0xff, 0x1f, 2, 0, 7, 8]) }] }));
    assert.throws(
      () => redo(page, record, 0, 18),
      (e) => isCode(e, 'CORRUPT'),
    );
  });

  test('records without blocks have none to redo', () => {
    const record = decode(simpleRecord({ rmid: RM_SMGR_ID, info: 0x10, blocks: [{ id: 0 }], main: Buffer.alloc(16) }));
    assert.throws(
      () => redo(Buffer.alloc(8192), record, 0, 18),
      (e) => isCode(e, 'UNSUPPORTED'),
    );
    const fpi = decode(simpleRecord({ rmid: RM_XLOG_ID, info: 0xb0, blocks: [{ id: 0 }] }));
    assert.throws(
      () => redo(Buffer.alloc(8192, 1), fpi, 0, 18),
      (e) => isCode(e, 'CORRUPT'),
    );
    assert.throws(
      () => redo(Buffer.alloc(10), decode(simpleRecord({ rmid: RM_BTREE_ID, info: 0, blocks: [{ id: 0 }] })), 0, 18),
      (e) => isCode(e, 'INVALID_ARGUMENT'),
    );
  });
});
