/** Bounds over all timelines: pages of those nobody reads go first; the more of them write, the smaller their open layers. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BLCKSZ, type Lsn } from '@lakebase/ids';
import { OpenLayerBudget } from './open-layer-budget.ts';
import { CacheBudget, PageCache } from './page-cache.ts';

const entry = { page: Buffer.alloc(BLCKSZ), lsn: 8 as Lsn };

test('a branch that is read takes the place of one that is not', () => {
  const budget = new CacheBudget(10 * BLCKSZ);
  const [idle, other, busy] = [new PageCache(budget), new PageCache(budget), new PageCache(budget)];
  for (let b = 0; b < 6; b++) idle.set(1, b, entry);
  for (let b = 0; b < 4; b++) other.set(1, b, entry);
  assert.ok(idle.get(1, 0) !== undefined);
  for (let b = 0; b < 8; b++) busy.set(1, b, entry);
  assert.ok(budget.used <= 10 * BLCKSZ);
  for (let b = 0; b < 8; b++) assert.ok(busy.get(1, b) !== undefined, `block ${b}`);
  // The one not used for longest gave its pages, all but one, then the other.
  assert.equal([0, 1, 2, 3].filter((b) => other.get(1, b) !== undefined).length, 1);
  for (let b = 0; b < 50; b++) busy.set(2, b, entry);
  assert.ok(budget.used <= 10 * BLCKSZ && busy.get(2, 49) !== undefined);
  busy.clear();
  idle.clear();
  other.clear();
  assert.equal(budget.used, 0);
});

test('a single timeline keeps to the bound; a page is there once it was put', () => {
  const budget = new CacheBudget(2 * BLCKSZ);
  const cache = new PageCache(budget);
  for (let b = 0; b < 100; b++) {
    cache.set(1, b, entry);
    assert.ok(cache.get(1, b) !== undefined);
  }
  assert.equal(budget.used, 2 * BLCKSZ);
  cache.delete(1, 99);
  assert.equal(budget.used, BLCKSZ);
});

test('shares of open layers', () => {
  const budget = new OpenLayerBudget(256 << 20);
  const owners = Array.from({ length: 20 }, () => ({}));
  assert.equal(budget.share(owners[0] as object, 2 << 20), 128 << 20);
  for (const o of owners) budget.share(o, 2 << 20);
  assert.equal(budget.share(owners[0] as object, 2 << 20), (128 << 20) / 20);
  for (const o of owners.slice(1)) budget.leave(o);
  assert.equal(budget.share(owners[0] as object, 100), 128 << 20);
  assert.equal(budget.writers, 0);
});
