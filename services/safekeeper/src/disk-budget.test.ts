import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { silentLogger } from '@lakebase/base';
import { DiskBudget, pressureOf } from './disk-budget.ts';
import { FlushWatch } from './flush-watch.ts';

test('pressure is silent up to half, rises evenly, and is 1 before the end', () => {
  assert.equal(pressureOf(0, 100), 0);
  assert.equal(pressureOf(50, 100), 0);
  assert.ok(Math.abs(pressureOf(72.5, 100) - 0.5) < 1e-9);
  assert.equal(pressureOf(95, 100), 1);
  assert.equal(pressureOf(1_000, 100), 1);
  assert.equal(pressureOf(0, 0), 1);
  for (let used = 1, before = 0; used < 100; used++) {
    const now = pressureOf(used, 100);
    assert.ok(now >= before && now - before < 0.03, 'no jumps');
    before = now;
  }
});

test('at the limit no segment may be begun; below it again all is well, without anybody asking', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'lb-budget-'));
  let used = 0;
  let looks = 0;
  const budget = new DiskBudget({ dir, limitBytes: 1_000, used: () => used, log: silentLogger, onLook: () => looks++ });
  await budget.start();
  budget.check();
  used = 1_000;
  await budget.look();
  assert.ok(budget.full);
  assert.throws(() => budget.check(), { code: 'RESOURCE_EXHAUSTED', message: /disk is full/ });
  used = 400;
  await budget.look();
  budget.check();
  assert.equal(budget.pressure, 0);
  used = 1_000; // between two looks
  assert.throws(() => budget.check(), { code: 'RESOURCE_EXHAUSTED' });
  used = 400;
  budget.check();
  assert.equal(looks, 3);
  budget.close();
  rmSync(dir, { recursive: true });
});

test('without a limit the free space is one', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'lb-budget-'));
  const budget = new DiskBudget({ dir, limitBytes: null, used: () => 10, log: silentLogger });
  await budget.look();
  assert.ok(budget.limitBytes >= 10 && Number.isFinite(budget.limitBytes));
  rmSync(dir, { recursive: true });
});

test('a stall and a slow mean are remembered for a minute, a quick disk is not slow', () => {
  const watch = new FlushWatch();
  for (let i = 0; i < 1_000; i++) watch.observe(0.005, i);
  assert.equal(watch.slow(1_000), false);
  watch.observe(1.5, 1_000);
  assert.equal(watch.slow(2_000), true);
  assert.equal(watch.slow(62_000), false);
  for (let i = 0; i < 100; i++) watch.observe(0.2, 70_000 + i);
  assert.equal(watch.slow(70_100), true);
});
