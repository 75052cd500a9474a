/** FSM pages and addresses against direct models. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BLCKSZ } from '@lakebase/ids';
import fc from 'fast-check';
import { FSM_SLOTS, fsmAddress, fsmCategory, fsmGet, fsmPhysicalBlock, fsmRoot, fsmSet, fsmTruncateAvail, fsmTruncation } from './fsm.ts';

test('addresses follow the depth-first layout', () => {
  assert.equal(FSM_SLOTS, 4069);
  assert.deepEqual(fsmAddress(0), { fsmBlock: 2, slot: 0 });
  assert.deepEqual(fsmAddress(4068), { fsmBlock: 2, slot: 4068 });
  assert.deepEqual(fsmAddress(4069), { fsmBlock: 3, slot: 0 });
  // After 4069 leaf pages comes the second page of the middle level.
  assert.equal(fsmPhysicalBlock(1, 1), 2 + 4069);
  assert.deepEqual(fsmAddress(4069 * 4069), { fsmBlock: 2 + 4069 + 1, slot: 0 });
  assert.equal(fsmPhysicalBlock(2, 0), 0);
  assert.equal(fsmPhysicalBlock(1, 0), 1);
  for (const index of [0, 1, 4068, 4069, 4070, 100_000, 1_055_512])
    assert.equal(fsmAddress(index * FSM_SLOTS).fsmBlock, fsmPhysicalBlock(0, index));
});

test('categories', () => {
  for (const [bytes, category] of [
    [0, 0],
    [31, 0],
    [32, 1],
    [8127, 253],
    [8128, 254],
    [8159, 254],
    [8160, 255],
    [8191, 255],
  ] as const) {
    assert.equal(fsmCategory(bytes), category);
  }
});

test('every inner node on a page is the maximum of its slots', () => {
  const slot = fc.integer({ min: 0, max: FSM_SLOTS - 1 });
  fc.assert(
    fc.property(fc.array(fc.tuple(slot, fc.integer({ min: 0, max: 255 })), { maxLength: 60 }), slot, (sets, cut) => {
      const page = Buffer.alloc(BLCKSZ);
      const model = new Map<number, number>();
      for (const [s, category] of sets) {
        fsmSet(page, s, category);
        model.set(s, category);
      }
      fsmTruncateAvail(page, cut);
      for (const s of model.keys()) if (s >= cut) model.set(s, 0);
      for (const [s, category] of model) assert.equal(fsmGet(page, s), category);
      assert.equal(fsmRoot(page), Math.max(0, ...model.values()));
    }),
    { numRuns: 60 },
  );
});

test('a root that lost its maximum is rebuilt', () => {
  const page = Buffer.alloc(BLCKSZ);
  fsmSet(page, 17, 90);
  page[28] = 0; // as after a torn write
  assert.equal(fsmSet(page, 17, 90), true);
  assert.equal(fsmRoot(page), 90);
});

test('truncation keeps the page that still covers blocks', () => {
  assert.deepEqual(fsmTruncation(0), { tailPage: undefined, blocks: 2 });
  assert.deepEqual(fsmTruncation(10), { tailPage: 2, blocks: 3 });
  assert.deepEqual(fsmTruncation(4069), { tailPage: undefined, blocks: 3 });
});
