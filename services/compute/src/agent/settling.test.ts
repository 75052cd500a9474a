/** The order of a round, what it asks with open transactions, when one is needed, and that one which cannot be finished changes nothing. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { silentLogger } from '@lakebase/base';
import { BLCKSZ, type ForkNumber, type Lsn, RELSEG_BLOCKS } from '@lakebase/ids';
import type { ResidentEntry, ShimCounters } from '../resident-map.ts';
import { Settling, type SettlingOptions } from './settling.ts';

const W = 0x5_0000_1000;
const MB_BLOCKS = (1 << 20) / BLCKSZ;

const entry = (index: number, rel: number, segment = 0, sourceFork: ForkNumber = 0): ResidentEntry => ({
  index,
  tag: { spc: 1663, db: 5, rel, fork: 0 },
  sourceFork,
  segment,
  nblocks: 100,
  dropped: false,
  laid: true,
});
/** Relation 7 has two segments, 8 is gone from storage, 9 is unlogged, 10 ends within its first. */
const ENTRIES = [entry(0, 7), entry(1, 7, 1), entry(2, 8), entry(3, 9, 0, 3), entry(4, 10), entry(5, 10, 1)];
const SIZES: Readonly<Record<number, number>> = { 7: RELSEG_BLOCKS + 30, 9: 500, 10: 40 };

interface Scene extends Partial<Omit<SettlingOptions, 'worker'>> {
  readonly busy?: number;
  readonly oldest?: () => string;
  readonly flushedBy?: () => string;
  readonly settles?: (entry: number) => number;
  readonly fail?: RegExp;
}

function scene(change: Scene = {}): { settling: Settling; said: string[]; clock: { now: number } } {
  const said: string[] = [];
  const clock = { now: 0 };
  const note = <T>(what: string, value: T): Promise<T> => {
    said.push(what);
    return change.fail?.test(what) === true ? Promise.reject(new Error(`no ${what}`)) : Promise.resolve(value);
  };
  let begun = 0;
  let next = 0;
  const settling = new Settling({
    counters: () => undefined,
    entry: (index) => ENTRIES[index],
    worker: {
      beginRound: () => {
        next = 0;
        return note('begin', begun++ < (change.busy ?? 0) ? undefined : 3);
      },
      openRound: (round) => note(`open ${round}`, undefined),
      nextEntry: () => note('next', next < ENTRIES.length ? next++ : undefined),
      sweep: (round, s) => note(`sweep ${round}: ${s.entry} below ${s.limit} ${s.lsn} ${s.openFrom}`, change.settles?.(s.entry) ?? 10),
    },
    row: (sql) => {
      if (sql.includes('pg_stat_replication')) {
        assert.match(sql, /IN \('sk1','sk2','sk3'\) AND flush_lsn >= '5\/1000'$/);
        return note('flushed', { n: change.flushedBy?.() ?? '2' });
      }
      if (sql.includes('xmin')) return note('oldest', { xid: change.oldest?.() ?? '4294968300' });
      return note('mark', { lsn: '5/1000', xid: '4294968299' });
    },
    rule: () => ({ count: 2, names: ['sk1', 'sk2', 'sk3'] }),
    ingested: () => note('ingested', W as Lsn),
    relSize: (tag, lsn) => note(`size ${tag.rel} ${lsn === W}`, SIZES[tag.rel]),
    raise: (lsn) => void said.push(`raise ${lsn}`),
    log: silentLogger,
    now: () => clock.now,
    pause: async (ms) => {
      clock.now += ms;
    },
    ...change,
  });
  return { settling, said, clock };
}

describe('a round of settling', () => {
  test('the LSN is read after the begin, pages are fetched at it when storage has it, and blocks are looked at after that', async () => {
    const { settling, said } = scene();
    assert.deepEqual(await settling.round(), { settled: 30, openFrom: undefined });
    assert.deepEqual(
      said.filter((s) => s !== 'next'),
      [
        ...['begin', 'mark', 'oldest', 'ingested', 'flushed', `raise ${W}`, 'open 3'],
        'size 7 true',
        `sweep 3: 0 below ${RELSEG_BLOCKS} ${W} undefined`,
        `sweep 3: 1 below 30 ${W} undefined`,
        'size 8 true',
        'size 10 true',
        `sweep 3: 4 below 40 ${W} undefined`,
      ],
    );
  });

  test('a transaction that stays open is named, in 32 bits, after a second; one that ends is waited for', async () => {
    const stays = scene({ oldest: () => '4294968290' });
    assert.equal((await stays.settling.round()).openFrom, 994);
    assert.ok(stays.said.includes(`sweep 3: 4 below 40 ${W} 994`));
    assert.ok(stays.clock.now >= 1_000 && stays.clock.now < 2_000);
    let asked = 0;
    const ends = scene({ oldest: () => (asked++ < 3 ? '4294968290' : '4294968299') });
    assert.equal((await ends.settling.round()).openFrom, undefined);
  });

  test('writes under way are waited for a few times, not longer', async () => {
    const short = scene({ busy: 4 });
    await short.settling.round();
    assert.equal(short.said.filter((s) => s === 'begin').length, 5);
    const long = scene({ busy: 5 });
    await assert.rejects(long.settling.round(), /writes take longer/);
    assert.ok(long.said.every((s) => s === 'begin'));
  });

  test('nothing is looked at before storage has the WAL, and has it from this compute', async () => {
    const untouched = (said: string[]): boolean => !said.some((s) => /raise|open|next|sweep/.test(s));
    const away = scene({ fail: /ingested/ });
    await assert.rejects(away.settling.round(), /no ingested/);
    assert.ok(untouched(away.said));
    const behind = scene({ ingested: () => Promise.resolve((W - 1) as Lsn) });
    await assert.rejects(behind.settling.round(), { code: 'UNAVAILABLE' });
    assert.ok(untouched(behind.said));
    // A newer compute of the branch has written beyond W: our quorum never says that it has ours.
    const fenced = scene({ flushedBy: () => '1' });
    await assert.rejects(fenced.settling.round(), { code: 'UNAVAILABLE' });
    assert.ok(untouched(fenced.said));
    const stopped = scene({ oldest: () => '4294968290' });
    stopped.settling.stop();
    await assert.rejects(stopped.settling.round(), { code: 'CLOSED' });
    assert.ok(untouched(stopped.said));
  });
});

/** In MiB of pages. */
const counters = (c: { kept: number; budget?: number; written?: number; wal?: number }): ShimCounters =>
  ({
    scratchBytes: (c.kept * MB_BLOCKS + 50) * BLCKSZ,
    cleanBlocks: 50,
    cleanBudget: (c.budget ?? 16) * MB_BLOCKS,
    blocksWritten: (c.written ?? 0) * MB_BLOCKS,
    walPosition: (c.wal ?? 0) * MB_BLOCKS * BLCKSZ,
  }) as ShimCounters;

describe('when rounds run', () => {
  test('needed when what cannot be dropped takes more than clean pages may, and something was changed', () => {
    const { settling } = scene();
    assert.equal(settling.needed(counters({ kept: 20, written: 3 })), true);
    assert.equal(settling.needed(counters({ kept: 20, wal: 3 })), true, 'new pages are no writes of the map');
    assert.equal(settling.needed(counters({ kept: 15, written: 3, wal: 3 })), false);
    assert.equal(settling.needed(counters({ kept: 20, written: 1, wal: 1 })), false);
    assert.equal(settling.needed(counters({ kept: 20, written: 3, budget: 0 })), false);
  });

  /** Looks every half second; how many rounds ran. */
  async function rounds(looks: number, change: Scene, at: (look: number) => ShimCounters): Promise<number> {
    let look = 0;
    const { settling, said, clock } = scene({ ...change, counters: () => at(look) });
    for (; look < looks; look++, clock.now += 500) await settling.look();
    return said.filter((s) => s === 'begin').length;
  }

  test('a busy compute whose pages settle runs them one after the other, until they do not', async () => {
    let settles = 2_000;
    const change = { settles: () => settles };
    assert.ok((await rounds(20, change, (look) => counters({ kept: 40, wal: look * 4 }))) >= 10);
    // Nothing is changed any more: another round may have more of it, one that has not is the last.
    assert.ok((await rounds(20, change, () => counters({ kept: 40, wal: 100 }))) >= 10);
    settles = 0;
    assert.equal(await rounds(200, change, () => counters({ kept: 40, wal: 100 })), 1);
  });

  test('rounds in vain, over WAL or temporary files, grow rare; new pages bring one at once', async () => {
    const vain = { settles: () => 0 };
    const busy = await rounds(240, vain, (look) => counters({ kept: 40, wal: look * 4 }));
    assert.ok(busy >= 8 && busy <= 14, `${busy} rounds in two minutes`);
    assert.equal(await rounds(12, vain, (look) => counters({ kept: 40 + look * 20, wal: look * 4 + 4 })), 12);
  });

  test('pages that an open transaction kept are tried again though nothing is changed', async () => {
    const open = { settles: () => 0, oldest: (): string => '4294968290' };
    const tries = await rounds(240, open, () => counters({ kept: 40, wal: 100 }));
    assert.ok(tries >= 8 && tries <= 14, `${tries} rounds in two minutes`);
  });

  test('a round that fails is told once, and tried again', async () => {
    const warnings: string[] = [];
    const log = {
      ...silentLogger,
      warn: (_: unknown, text?: string) => void warnings.push(String(text)),
    } as unknown as SettlingOptions['log'];
    const failed = await rounds(240, { fail: /open 3/, log }, () => counters({ kept: 40, wal: 100 }));
    assert.ok(failed >= 8 && failed <= 14);
    assert.equal(warnings.length, 1);
  });
});
