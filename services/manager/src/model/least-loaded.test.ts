/** Which node a new project goes to. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type NodeDisk, type NodeLoad, PROJECT_BYTES_MIN, leastLoaded } from './least-loaded.ts';

const GIB = 2 ** 30;
const node = (id: string, capacityBytes?: number): NodeDisk => ({ id, capacityBytes });
const load = (id: string, bytes: number, projects = 1): NodeLoad => ({ id, bytes, projects });

/** Where `count` new projects go, one after the other, each counted before the next. */
function burst(nodes: readonly NodeDisk[], loads: readonly NodeLoad[], count: number): Record<string, number> {
  const now = new Map(nodes.map(({ id }) => [id, loads.find((l) => l.id === id) ?? load(id, 0, 0)]));
  const placed: Record<string, number> = Object.fromEntries(nodes.map(({ id }) => [id, 0]));
  for (let i = 0; i < count; i++) {
    const id = leastLoaded(nodes, [...now.values()]);
    const { bytes, projects } = now.get(id) as NodeLoad;
    now.set(id, load(id, bytes + PROJECT_BYTES_MIN, projects + 1));
    placed[id] = (placed[id] as number) + 1;
  }
  return placed;
}

const cases: readonly { what: string; nodes: readonly NodeDisk[]; loads: readonly NodeLoad[]; chosen: string }[] = [
  { what: 'nothing anywhere: the first', nodes: [node('b'), node('a')], loads: [], chosen: 'b' },
  {
    what: 'least bytes, though it has more projects',
    nodes: [node('a'), node('b')],
    loads: [load('a', 100 * GIB, 1), load('b', GIB, 9)],
    chosen: 'b',
  },
  {
    what: 'as many bytes: fewer projects',
    nodes: [node('a'), node('b')],
    loads: [load('a', GIB, 4), load('b', GIB, 3)],
    chosen: 'b',
  },
  { what: 'all the same: the first', nodes: [node('a'), node('b')], loads: [load('b', GIB), load('a', GIB)], chosen: 'a' },
  {
    what: 'more bytes, less of its disk',
    nodes: [node('a', 100 * GIB), node('b', 1_000 * GIB)],
    loads: [load('a', 50 * GIB), load('b', 100 * GIB)],
    chosen: 'b',
  },
  { what: 'both empty: the larger', nodes: [node('a', 100 * GIB), node('b', 1_000 * GIB)], loads: [], chosen: 'b' },
  {
    what: 'one capacity is not known: none counts',
    nodes: [node('a', 100 * GIB), node('b')],
    loads: [load('a', 50 * GIB), load('b', 100 * GIB)],
    chosen: 'a',
  },
  { what: 'load of a node that is no candidate', nodes: [node('b')], loads: [load('a', 0), load('b', GIB)], chosen: 'b' },
];
for (const { what, nodes, loads, chosen } of cases) test(what, () => assert.equal(leastLoaded(nodes, loads), chosen));

test('a burst of new projects spreads, by capacity', () => {
  assert.deepEqual(burst([node('a'), node('b'), node('c')], [], 9), { a: 3, b: 3, c: 3 });
  assert.deepEqual(burst([node('a', 100 * GIB), node('b', 300 * GIB)], [], 8), { a: 2, b: 6 });
});

test('a burst fills what is behind first, then spreads', () => {
  assert.deepEqual(burst([node('a'), node('b')], [load('a', 4 * PROJECT_BYTES_MIN)], 8), { a: 2, b: 6 });
});

test('no node, no choice', () => {
  assert.throws(() => leastLoaded([], []), /no node/);
});
