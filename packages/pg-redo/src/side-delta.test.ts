import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isCode } from '@lakebase/base';
import { lsn } from '@lakebase/ids';
import fc from 'fast-check';
import * as d from './side-delta.ts';

const END = lsn(0x100);
const zeros = (): Buffer => Buffer.alloc(8192);

test('transaction status: two bits per xid, low bits first, others untouched', () => {
  const page = zeros();
  d.applySideDelta(page, d.xactStatusDelta(d.TRANSACTION_STATUS_COMMITTED, [32_768 * 5 + 3, 32_768 * 5 + 4]), END);
  d.applySideDelta(page, d.xactStatusDelta(d.TRANSACTION_STATUS_ABORTED, [32_768 * 5 + 5]), END);
  assert.deepEqual([page[0], page[1]], [0b01_00_00_00, 0b10_01]);
  d.applySideDelta(page, d.xactStatusDelta(d.TRANSACTION_STATUS_COMMITTED, [32_767]), END);
  assert.equal(page[8191], 0b01_00_00_00);
});

test('multixact offsets are four bytes at the multixact modulo 2048', () => {
  const page = zeros();
  d.applySideDelta(
    page,
    d.multixactOffsetsDelta([
      [2048 + 7, 900],
      [2048 + 8, 0xffff_fff0],
    ]),
    END,
  );
  assert.deepEqual([page.readUInt32LE(28), page.readUInt32LE(32)], [900, 0xffff_fff0]);
});

test('multixact members: groups of four flag bytes and four xids', () => {
  const page = zeros();
  const members = [0, 3, 4, 1635].map((offset, i) => ({ offset: 1636 * 2 + offset, xid: 1000 + i, status: i + 1 }));
  d.applySideDelta(page, d.multixactMembersDelta(members), END);
  assert.deepEqual([page[0], page[3], page.readUInt32LE(4), page.readUInt32LE(16)], [1, 2, 1000, 1001]);
  assert.deepEqual([page[20], page.readUInt32LE(24)], [3, 1002]);
  assert.deepEqual([page[408 * 20 + 3], page.readUInt32LE(408 * 20 + 16)], [4, 1003]);
});

test('commit timestamps are ten bytes at the xid modulo 819', () => {
  const page = zeros();
  d.applySideDelta(page, d.commitTsDelta(Buffer.from([1, 2, 3, 4, 5, 6, 7, 8]), 0x0a0b, [819 * 3 + 818]), END);
  assert.equal(page.toString('hex', 8180, 8190), '01020304050607080b0a');
});

test('applying twice changes nothing more, and random deltas apply or are CORRUPT', () => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 0x50 }), fc.uint8Array({ maxLength: 40 }), (kind, rest) => {
      const delta = Buffer.concat([Buffer.from([kind]), Buffer.from(rest)]);
      const page = zeros();
      try {
        d.applySideDelta(page, delta, END);
        const once = Buffer.from(page);
        d.applySideDelta(page, delta, END);
        assert.ok(once.equals(page));
      } catch (error) {
        assert.ok(isCode(error, 'CORRUPT'), String(error));
      }
    }),
    { numRuns: 3000 },
  );
});
