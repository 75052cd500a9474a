/** The visibility map's bits against a model. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BLCKSZ } from '@lakebase/ids';
import fc from 'fast-check';
import { applyHeapDelta, vmClearDelta, vmTruncateDelta } from './heap-delta.ts';
import { HEAP_BLOCKS_PER_VM_PAGE, VM_ALL_FROZEN, VM_VALID_BITS, vmClear, vmGet, vmPageOf, vmSet, vmTruncation } from './vm.ts';

test('32,672 heap blocks a page', () => {
  assert.equal(HEAP_BLOCKS_PER_VM_PAGE, 32_672);
  assert.equal(vmPageOf(32_671), 0);
  assert.equal(vmPageOf(32_672), 1);
  assert.equal(vmPageOf(0xffff_fffe), Math.floor(0xffff_fffe / 32_672));
});

test('set, clear and truncate touch the named blocks only', () => {
  const block = fc.integer({ min: 0, max: HEAP_BLOCKS_PER_VM_PAGE - 1 });
  fc.assert(
    fc.property(
      fc.array(fc.tuple(block, fc.constantFrom(1, 3)), { maxLength: 50 }),
      fc.array(block, { maxLength: 20 }),
      block,
      (sets, clears, cut) => {
        const page = Buffer.alloc(BLCKSZ);
        const model = new Map<number, number>();
        for (const [b, bits] of sets) {
          vmSet(page, b, bits);
          model.set(b, (model.get(b) ?? 0) | bits);
        }
        for (const b of clears) {
          applyHeapDelta(page, vmClearDelta(b, VM_VALID_BITS));
          model.set(b, 0);
        }
        applyHeapDelta(page, vmTruncateDelta(cut));
        for (const [b, bits] of model) assert.equal(vmGet(page, b), b >= cut ? 0 : bits, `block ${b}`);
      },
    ),
    { numRuns: 60 },
  );
});

test('a lock clears the frozen bit and keeps the visible one', () => {
  const page = Buffer.alloc(BLCKSZ);
  vmSet(page, 5, VM_VALID_BITS);
  assert.equal(vmClear(page, 5, VM_ALL_FROZEN), true);
  assert.equal(vmGet(page, 5), 1);
  assert.equal(vmClear(page, 5, VM_ALL_FROZEN), false);
});

test('truncation at a page boundary leaves no tail', () => {
  assert.deepEqual(vmTruncation(32_672), { tailPage: undefined, blocks: 1 });
  assert.deepEqual(vmTruncation(1), { tailPage: 0, blocks: 1 });
});
