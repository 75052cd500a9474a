import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { createMetricsRegistry, eventLoopDelay } from './metrics.ts';

test('how late the event loop was is told once, without the time between two looks', async () => {
  const late = eventLoopDelay();
  await sleep(350); // its timer has fired: intervals are counted from then on
  const until = performance.now() + 400;
  while (performance.now() < until);
  await sleep(350);
  const seconds = late();
  assert.ok(seconds > 0.2 && seconds < 5, `${seconds} s`);
});

test('the default metrics are there', async () => {
  assert.match(await createMetricsRegistry().metrics(), /nodejs_eventloop_lag_p99_seconds/);
});
