/** Hostile records: any record that decodes may only lead to a page, effects, CORRUPT or UNSUPPORTED, for every resource manager. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isCode } from '@lakebase/base';
import { lsn } from '@lakebase/ids';
import { decodeRecord, initPage, newDecodedRecord, pageAddItem, pdLower, pdUpper } from '@lakebase/pg-format';
import fc from 'fast-check';
import { emitEffects, redo } from './dispatch.ts';
import { simpleRecord } from './testing/record-maker.ts';
import { recordingSink } from './testing/recording-sink.ts';

const RMGRS = Array.from({ length: 23 }, (_, i) => (i < 22 ? i : 130));
/** Small numbers are far likelier to pass a check and reach the code behind it. */
const number16 = fc.oneof(
  { weight: 4, arbitrary: fc.integer({ min: 0, max: 12 }) },
  { weight: 2, arbitrary: fc.integer({ min: 0, max: 400 }) },
  fc.integer({ min: 0, max: 0xffff }),
);
const words = (max: number) =>
  fc.array(number16, { maxLength: max }).map((values) => {
    const out = Buffer.alloc(values.length * 2);
    values.forEach((v, i) => out.writeUInt16LE(v, i * 2));
    return out;
  });
const blocks = fc.array(fc.record({ data: words(60), willInit: fc.boolean(), fork: fc.integer({ min: 0, max: 3 }), used: fc.boolean() }), {
  maxLength: 5,
});

/** An index- or heap-like page with a few tuples, some of them posting lists. */
function somePage(special: number, items: readonly number[]): Buffer {
  const page = Buffer.alloc(8192);
  initPage(page, special);
  const tuple = Buffer.alloc(8192);
  for (const [i, n] of items.entries()) {
    const size = 16 + (n % 40) * 8;
    tuple.fill(i + 1, 0, size);
    tuple.writeUInt16LE(0, 0);
    tuple.writeUInt16LE(n % 3 === 0 ? 16 : 7, 2);
    tuple.writeUInt16LE(n % 3 === 0 ? 0x2000 | Math.max(2, Math.floor((size - 16) / 6)) : 1 + i, 4);
    tuple.writeUInt16LE(size | (n % 3 === 0 ? 0x2000 : 0), 6);
    pageAddItem(page, tuple, 0, size, 0, 0);
  }
  return page;
}

test('any record on any page', () => {
  const out = newDecodedRecord();
  const guard = Buffer.alloc(3 * 8192, 0x5a);
  const untouched = Buffer.alloc(8192, 0x5a);
  const outcomes = { done: 0, corrupt: 0, unsupported: 0 };
  fc.assert(
    fc.property(
      fc.constantFrom(...RMGRS),
      fc.integer({ min: 0, max: 15 }),
      blocks,
      words(80),
      fc.array(fc.nat(200), { maxLength: 12 }),
      fc.constantFrom(0, 8, 16),
      fc.constantFrom(16, 17, 18),
      (rmid, op, blockFields, main, items, special, major) => {
        const used = blockFields
          .map((b, id) => ({
            id,
            willInit: b.willInit,
            fork: b.fork,
            ...(b.data.length > 0 ? { data: b.data } : {}),
            used: b.used || id === 0,
          }))
          .filter((b) => b.used);
        const bytes = simpleRecord({ rmid, info: op << 4, xid: 700, blocks: used, main });
        const record = decodeRecord(bytes, 0, bytes.length, lsn(0x1000), lsn(0x2000), out);
        const attempt = (work: () => void): void => {
          try {
            work();
            outcomes.done++;
          } catch (error) {
            assert.ok(
              isCode(error, 'CORRUPT') || isCode(error, 'UNSUPPORTED'),
              error instanceof Error ? (error.stack ?? '') : String(error),
            );
            assert.match(error.message, / 0\/1000\b/);
            outcomes[isCode(error, 'CORRUPT') ? 'corrupt' : 'unsupported']++;
          }
        };
        attempt(() => emitEffects(record, major, recordingSink().sink));
        for (let id = 0; id <= record.maxBlockId; id++) {
          if (record.blocks[id]?.inUse !== true) continue;
          // The page lies between guards, as it would in a pool of pages.
          const page = guard.subarray(8192, 16_384);
          somePage(special, items).copy(page);
          attempt(() => {
            redo(page, record, id, major);
            assert.ok(pdLower(page) <= 8192 && pdUpper(page) <= 8192);
          });
          assert.ok(
            guard.subarray(0, 8192).equals(untouched) && guard.subarray(16_384).equals(untouched),
            'bytes outside the page changed',
          );
        }
      },
    ),
    { numRuns: 6000 },
  );
  assert.ok(outcomes.done > 500 && outcomes.corrupt > 500 && outcomes.unsupported > 500, JSON.stringify(outcomes));
});
