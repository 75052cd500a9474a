/** The rule of back-pressure against a model of a writer and of storage: the lag stays in its bound, and nothing is stopped. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { silentLogger } from '@lakebase/base';
import { BLCKSZ, type Lsn, lsn } from '@lakebase/ids';
import { Backpressure, RATE_MIN } from './backpressure.ts';

const MB = 1 << 20;
const START = 0x100_0000;
const TICK_MS = 100;

/** `storage` and `writer`: bytes a second as a function of the time. Returns lag by tick, and the longest any 4 MiB of WAL took. */
async function simulate(options: {
  seconds: number;
  maxLag: number;
  storage: (ms: number) => number;
  writer: (ms: number) => number;
  fails?: (ms: number) => boolean;
}) {
  let now = 0;
  let position = START;
  let ingested = START;
  let delayNs = 0;
  let asked = 0;
  const b = new Backpressure({
    walPosition: () => position,
    setWalDelay: (ns) => (delayNs = ns),
    ingested: async () => {
      asked++;
      if (options.fails?.(now) === true) throw new Error('away');
      return lsn(Math.floor(ingested));
    },
    startLsn: START as Lsn,
    maxLagBytes: options.maxLag,
    quorum: 2,
    log: silentLogger,
    now: () => now,
  });
  const lags: number[] = [];
  const rates: number[] = [];
  for (; now < options.seconds * 1_000; now += TICK_MS) {
    const allowed = delayNs === 0 ? Infinity : (BLCKSZ / delayNs) * 1e9;
    const rate = Math.min(options.writer(now), allowed);
    position += (rate * TICK_MS) / 1_000;
    ingested = Math.min(position, ingested + (options.storage(now) * TICK_MS) / 1_000);
    b.tick();
    await Promise.resolve().then(() => Promise.resolve());
    await Promise.resolve();
    lags.push(position - ingested);
    rates.push(rate);
  }
  return { lags, rates, asked, b, delay: () => delayNs };
}

test('a writer of 200 MB/s over storage of any speed stays below the bound and settles at storage’s rate', async () => {
  for (const speed of [2, 8, 40, 120]) {
    const { lags, rates } = await simulate({ seconds: 300, maxLag: 512 * MB, storage: () => speed * MB, writer: () => 200 * MB });
    assert.ok(Math.max(...lags) <= 512 * MB, `${speed} MB/s: ${Math.max(...lags) / MB} MiB`);
    const late = rates.slice(-200);
    const mean = late.reduce((a, x) => a + x, 0) / late.length;
    assert.ok(Math.abs(mean / (speed * MB) - 1) < 0.15, `${speed} MB/s: writes ${mean / MB} MB/s`);
    assert.ok(
      Math.min(...late) > 0.5 * mean && Math.max(...late) < 2 * mean,
      `${speed} MB/s: ${Math.min(...late) / MB}…${Math.max(...late) / MB}`,
    );
  }
});

test('a writer that begins is slowed to storage’s rate and never far below it, whatever the bound', async () => {
  for (const maxLag of [64, 512])
    for (const speed of [2, 5, 10, 40])
      for (const storage of [
        () => speed * MB,
        // In gulps of 0.7 s.
        (ms: number) => (ms % 1_000 < 700 ? (speed * MB) / 0.7 : 0),
      ]) {
        const { lags, rates } = await simulate({ seconds: 120, maxLag: maxLag * MB, storage, writer: () => 100 * MB });
        const what = `${speed} MB/s, bound ${maxLag} MiB: ${Math.min(...rates) / MB} MB/s, lag ${Math.max(...lags) / MB} MiB`;
        assert.ok(Math.min(...rates) > 0.55 * speed * MB, what);
        assert.ok(Math.max(...lags) <= 0.85 * maxLag * MB, what);
      }
});

test('storage that is fast enough never slows anybody, and an idle compute asks nothing', async () => {
  const fast = await simulate({ seconds: 60, maxLag: 512 * MB, storage: () => 210 * MB, writer: () => 200 * MB });
  assert.equal(fast.delay(), 0);
  assert.equal(fast.b.state.allowedBytesPerSecond, null);
  const idle = await simulate({ seconds: 60, maxLag: 512 * MB, storage: () => 0, writer: () => 0 });
  assert.equal(idle.asked, 0);
});

test('storage that goes away slows the writer to the least rate, not to nothing, and lets go when it is back', async () => {
  const away = (ms: number): boolean => ms > 20_000 && ms < 120_000;
  const { lags, rates, delay } = await simulate({
    seconds: 400,
    maxLag: 512 * MB,
    storage: (ms) => (away(ms) ? 0 : 100 * MB),
    writer: (ms) => (ms < 150_000 ? 50 * MB : 1 * MB),
    fails: away,
  });
  assert.ok(Math.min(...rates.slice(0, 1_000)) >= RATE_MIN * 0.99);
  assert.ok(Math.max(...lags) < 512 * MB + 100 * 3 * MB, `${Math.max(...lags) / MB} MiB`);
  assert.equal(delay(), 0);
  assert.ok((lags.at(-1) as number) < MB);
});

test('pressure counts when a quorum has it, and stop lets everything through', () => {
  let delayNs = 0;
  const b = new Backpressure({
    walPosition: () => START,
    setWalDelay: (ns) => (delayNs = ns),
    ingested: async () => lsn(START),
    startLsn: START as Lsn,
    maxLagBytes: 512 * MB,
    quorum: 2,
    log: silentLogger,
  });
  const slowed = (pressures: readonly number[]): number => {
    for (const [i, pressure] of pressures.entries()) b.member(`sk${i + 1}`, { pressure, offloadedLsn: START - 5 });
    b.tick();
    return delayNs;
  };
  assert.equal(slowed([0.1, 0.2, 1]), 0);
  const some = slowed([0.1, 0.7, 1]);
  const more = slowed([0.1, 0.9, 1]);
  assert.ok(0 < some && some < more);
  assert.equal(slowed([1, 1, 1]), Math.round((BLCKSZ / RATE_MIN) * 1e9));
  assert.equal(b.state.offloadLagBytes, 5);
  b.stop();
  assert.equal(delayNs, 0);
});
