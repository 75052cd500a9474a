import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { isCode } from '@lakebase/base';
import { type ForkNumber, RELSEG_BLOCKS, type RelTag } from '@lakebase/ids';
import fc from 'fast-check';
import {
  BLOCK_ABSENT,
  BLOCK_CLEAN,
  BLOCK_DIRTY,
  type BlockState,
  ResidentMap,
  ResidentMapFile,
  type ResidentSegment,
} from './resident-map.ts';
import { ShimSide } from './testing/shim-side.ts';

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

/** A map in a file of its own. */
function inFile(segments: readonly ResidentSegment[], use: (path: string, map: ResidentMap) => void): void {
  const dir = mkdtempSync(join(tmpdir(), 'resident-map-'));
  try {
    const path = join(dir, 'map');
    const map = ResidentMap.build(segments);
    map.write(path);
    use(path, map);
  } finally {
    rmSync(dir, { recursive: true });
  }
}

test('a map survives the file, which is sparse', () => {
  inFile([{ tag: main(5, 10), segment: 1, nblocks: 40, sourceFork: 3 }], (path, map) => {
    map.setState(0, 39, BLOCK_DIRTY);
    map.write(path);
    const { size, blocks } = statSync(path);
    assert.ok(size > 512 << 20 && blocks * 512 < 1 << 20, `${blocks * 512} of ${size} bytes are on the disk`);
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
  });
});

test('what the shim adds is seen: grown entries, new ones, one that came back under an old name', () => {
  const [old, gone] = [main(5, 10), main(5, 11)];
  const start = [
    { tag: old, segment: 0, nblocks: 40 },
    { tag: gone, segment: 0, nblocks: 8 },
  ];
  inFile(start, (path, map) => {
    using shim = new ShimSide(path);
    using file = new ResidentMapFile(path);
    assert.equal(file.entry(2), undefined);
    shim.grow(0, 64); // within whole cells of the start
    shim.setState(0, 63, BLOCK_CLEAN);
    map.refresh(path);
    assert.equal(map.state(0, 63), BLOCK_CLEAN);
    shim.grow(0, RELSEG_BLOCKS);
    for (const block of [64, 1_000, RELSEG_BLOCKS - 1]) shim.setState(0, block, BLOCK_DIRTY);
    shim.touch(0, 1_000);
    const added = shim.adopt(main(5, 9), 3, 70);
    shim.setState(added, 69, BLOCK_CLEAN);
    shim.touch(added, 69);
    shim.drop(1);
    const back = shim.adopt(gone, 0, 5);
    for (const [counter, value] of Object.entries({ round: 7, blocksSettled: 8, blocksAdopted: 9 })) shim.count(counter as 'round', value);
    assert.equal(map.length, 2, 'a snapshot');
    assert.equal(map.find(main(5, 9), 3), -1);
    map.refresh(path);
    assert.deepEqual([map.length, added, back], [4, 2, 3]);
    assert.deepEqual([...map.blocks(0, BLOCK_CLEAN, BLOCK_DIRTY)], [63, 64, 1_000, RELSEG_BLOCKS - 1]);
    assert.deepEqual([...map.accessedBlocks(0)], [1_000]);
    assert.ok(map.accessed(0, 1_000) && !map.accessed(0, 1_001));
    assert.deepEqual([map.find(main(5, 9), 3), map.find(main(5, 9), 0), map.find(gone, 0)], [added, -1, back]);
    assert.deepEqual([...map.accessedBlocks(added)], [69]);
    assert.equal([...map.blocks(added, BLOCK_ABSENT)].length, 69);
    assert.equal(map.entry(1).dropped, true);
    assert.deepEqual(map.totals(), { absent: RELSEG_BLOCKS - 4 + 69 + 5, busy: 0, clean: 2, dirty: 3 });
    assert.deepEqual(file.entry(added), map.entry(added));
    assert.equal(file.entry(4), undefined);
    const { rounds, blocksSettled, blocksAdopted, added: count } = file.counters();
    assert.deepEqual([rounds, blocksSettled, blocksAdopted, count], [7, 8, 9, 2]);
    assert.throws(() => map.write(path), /not written again/);
    // The area of a dropped file may be another's; its name is still this entry's.
    shim.drop(added);
    map.refresh(path);
    assert.equal(map.find(main(5, 9), 3), added);
    assert.equal(map.entry(added).nblocks, 0);
    assert.throws(() => map.state(added, 0), /no block 0/);
    // Without an area there are no blocks beyond the base.
    shim.setU32(0, 256 + 36);
    map.refresh(path);
    assert.equal(map.entry(0).nblocks, 64);
  });
});

test('damaged maps are refused, or read without harm', () => {
  const start = [
    { tag: main(5, 10), segment: 0, nblocks: 40 },
    { tag: main(5, 11), segment: 0, nblocks: 700 },
  ];
  inFile(start, (path) => {
    using shim = new ShimSide(path);
    shim.grow(0, 200);
    shim.adopt(main(6, 1), 0, 50);
    const head = 256 + 3 * 48;
    const good = shim.read(0, head);
    const corrupt = (error: Error): boolean => isCode(error, 'CORRUPT');
    const look = (): void => {
      const map = ResidentMap.open(path);
      for (const { index, nblocks } of map.entries()) if (nblocks > 0) map.state(index, nblocks - 1);
      map.totals();
      using file = new ResidentMapFile(path);
      file.entry(2);
    };
    look();
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.integer({ min: 0, max: head / 4 - 1 }), fc.oneof(fc.integer({ min: 0, max: 70_000 }), fc.nat(0xffff_ffff))), {
          minLength: 1,
          maxLength: 3,
        }),
        (damage) => {
          for (const [word, value] of damage) shim.setU32(value, word * 4);
          try {
            look();
          } catch (error) {
            assert.ok(corrupt(error as Error), String(error));
          } finally {
            shim.write(good, 0);
          }
        },
      ),
      { numRuns: 300 },
    );
    // Each number that says where something lies.
    const fields: [at: number, value: number][] = [
      ...[0, 4, 8, 16, 24, 32, 216, 220, 224, 232].map((at): [number, number] => [at, 77]),
      [180, 8_193],
      [256 + 16, RELSEG_BLOCKS + 1], // nblocks
      [256 + 24, 0], // cells before, after their place
      [256 + 24, 0x7fff_ffff],
      [256 + 32, 33], // base
      [256 + 36, 8_193], // area
      [256 + 2 * 48 + 32, 32], // an added one has no base
      [256 + 12, 0x0404],
    ];
    for (const [at, value] of fields) {
      shim.setU32(value, at);
      assert.throws(look, corrupt, `${value} at ${at}`);
      shim.write(good, 0);
    }
    truncateSync(path, shim.u32(232));
    assert.throws(look, corrupt);
    for (const bytes of [0, 200, 300]) {
      writeFileSync(path, Buffer.alloc(bytes));
      assert.throws(() => ResidentMap.open(path), corrupt);
      assert.throws(() => new ResidentMapFile(path), corrupt);
    }
  });
});

test('segments that cannot be represented are refused', () => {
  const one = { tag: main(5, 10), segment: 0, nblocks: 1 };
  assert.throws(() => ResidentMap.build([one, one]), /listed twice/);
  assert.throws(() => ResidentMap.build([{ ...one, nblocks: 131_073 }]), /more than a segment/);
  assert.throws(() => ResidentMap.build([{ ...one, segment: 65_536 }]), /out of range/);
  assert.throws(() => ResidentMap.build([{ ...one, tag: { ...one.tag, spc: -1 } }]), /out of range/);
});
