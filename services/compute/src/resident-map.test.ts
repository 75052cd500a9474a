import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { type ForkNumber, type RelTag } from '@lakebase/ids';
import fc from 'fast-check';
import { BLOCK_CLEAN, BLOCK_DIRTY, type BlockState, ResidentMap, ResidentMapFile, type ResidentSegment } from './resident-map.ts';

const main = (db: number, rel: number, fork: ForkNumber = 0): RelTag => ({ spc: 1663, db, rel, fork });

const segments = fc.uniqueArray(
  fc.record({
    tag: fc.record({
      spc: fc.constantFrom(1663, 1664),
      db: fc.integer({ min: 0, max: 0xffff_ffff }),
      rel: fc.integer({ min: 0, max: 0xffff_ffff }),
      fork: fc.constantFrom<ForkNumber>(0, 1, 2, 3),
    }),
    segment: fc.integer({ min: 0, max: 0xffff }),
    nblocks: fc.integer({ min: 0, max: 200 }),
  }),
  { selector: (s) => JSON.stringify([s.tag, s.segment]), maxLength: 40 },
);

test('what was built is found again, whatever the order given', () => {
  fc.assert(
    fc.property(segments, (list: ResidentSegment[]) => {
      const map = ResidentMap.build(list);
      assert.equal(map.length, list.length);
      for (const s of list) {
        const entry = map.entry(map.find(s.tag, s.segment));
        assert.deepEqual(
          [entry.tag, entry.segment, entry.nblocks, entry.sourceFork, entry.dropped],
          [{ ...s.tag }, s.segment, s.nblocks, s.tag.fork, false],
        );
      }
      assert.equal(map.find(main(1, 2), 70_000), -1);
    }),
    { numRuns: 50 },
  );
});

test('block states do not disturb their neighbours', () => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.integer({ min: 0, max: 99 }), fc.constantFrom<BlockState>(0, 1, 2, 3)), { maxLength: 200 }),
      (writes) => {
        const map = ResidentMap.build([
          { tag: main(5, 10), segment: 0, nblocks: 100 },
          { tag: main(5, 11), segment: 0, nblocks: 100 },
        ]);
        const model = new Array<BlockState>(100).fill(0);
        for (const [block, state] of writes) {
          map.setState(0, block, state);
          model[block] = state;
        }
        model.forEach((state, block) => assert.equal(map.state(0, block), state));
        assert.deepEqual(
          [...map.blocks(0, BLOCK_CLEAN, BLOCK_DIRTY)],
          [...model.keys()].filter((b) => (model[b] as number) >= 2),
        );
        assert.deepEqual([...map.blocks(1, BLOCK_CLEAN, BLOCK_DIRTY)], []);
      },
    ),
    { numRuns: 50 },
  );
});

test('a map survives the file and refuses what is not one', () => {
  const dir = mkdtempSync(join(tmpdir(), 'resident-map-'));
  try {
    const path = join(dir, 'map');
    const map = ResidentMap.build([{ tag: main(5, 10), segment: 1, nblocks: 40, sourceFork: 3 }]);
    map.setState(0, 39, BLOCK_DIRTY);
    map.write(path);
    const again = ResidentMap.open(path);
    assert.equal(again.entry(0).sourceFork, 3);
    assert.equal(again.state(0, 39), BLOCK_DIRTY);
    assert.deepEqual(again.totals(), { absent: 39, busy: 0, clean: 0, dirty: 1 });
    using file = new ResidentMapFile(path);
    const { faultRequests, cleanBlocks, walDelayNs } = file.counters();
    assert.deepEqual({ faultRequests, cleanBlocks, walDelayNs }, { faultRequests: 0, cleanBlocks: map.totals().clean, walDelayNs: 0 });
    file.setWalDelay(2 ** 33 + 5);
    assert.equal(file.counters().walDelayNs, 2 ** 33 + 5);
    assert.throws(() => again.state(0, 40), /no block 40/);
    assert.throws(() => again.entry(1), /1 entries/);
    assert.throws(() => ResidentMap.decode(Buffer.alloc(200)), /magic/);
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test('segments that cannot be represented are refused', () => {
  const one = { tag: main(5, 10), segment: 0, nblocks: 1 };
  assert.throws(() => ResidentMap.build([one, one]), /listed twice/);
  assert.throws(() => ResidentMap.build([{ ...one, nblocks: 131_073 }]), /more than a segment/);
  assert.throws(() => ResidentMap.build([{ ...one, segment: 65_536 }]), /out of range/);
  assert.throws(() => ResidentMap.build([{ ...one, tag: { ...one.tag, spc: -1 } }]), /out of range/);
});
