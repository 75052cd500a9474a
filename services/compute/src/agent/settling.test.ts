/** The order of a round, what it asks with open transactions, and that one which cannot be finished changes nothing. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { silentLogger } from '@lakebase/base';
import { BLCKSZ, type Lsn } from '@lakebase/ids';
import type { ShimCounters } from '../resident-map.ts';
import { Settling, type SettlingOptions } from './settling.ts';

const W = 0x5_0000_1000;

function scene(change: Partial<Omit<SettlingOptions, 'worker'>> & { oldest?: () => string; quiet?: boolean } = {}): {
  settling: Settling;
  said: string[];
} {
  const said: string[] = [];
  const note = <T>(what: string, value: T): Promise<T> => {
    said.push(what);
    return Promise.resolve(value);
  };
  let looks = 0;
  const settling = new Settling({
    counters: () => undefined,
    worker: {
      beginRound: () => note('begin', 3),
      isQuiet: (round) => note(`quiet ${round}`, change.quiet !== false && looks++ > 0),
      openRound: (round) => note(`open ${round}`, undefined),
      sweep: (round, lsn, from) =>
        note(`sweep ${round} ${lsn} ${from}`, { settled: 10, more: said.filter((s) => s.startsWith('sweep')).length < 1 }),
    },
    row: (sql) => {
      if (sql.includes('xmin')) return note('oldest', { xid: change.oldest?.() ?? '4294968300' });
      if (sql.includes('wal_insert')) return note('lsn', { lsn: '5/1000', xid: '4294968301' });
      return note('own', { xid: '4294968299' });
    },
    ingested: () => note('ingested', W as Lsn),
    raise: (lsn) => void said.push(`raise ${lsn}`),
    log: silentLogger,
    ...change,
  });
  return { settling, said };
}

describe('rounds of settling', () => {
  test('the LSN is read after the grace, and swept after storage has it', async () => {
    const { settling, said } = scene();
    assert.equal(await settling.round(), 20);
    assert.deepEqual(said, [
      'begin',
      'quiet 3',
      'quiet 3',
      'own',
      'oldest',
      'lsn',
      'ingested',
      `raise ${W}`,
      'open 3',
      `sweep 3 ${W} undefined`,
      `sweep 3 ${W} undefined`,
    ]);
  });

  test('a transaction that stays open is named, in 32 bits; one that ends is waited for', async () => {
    const stays = scene({ oldest: () => '4294968290' });
    await stays.settling.round();
    assert.ok(stays.said.includes(`sweep 3 ${W} 994`));
    let asked = 0;
    const ends = scene({ oldest: () => (asked++ < 3 ? '4294968290' : '4294968301') });
    await ends.settling.round();
    assert.ok(ends.said.includes(`sweep 3 ${W} undefined`));
  });

  test('storage that does not get there ends the round before anything is swept', async () => {
    const { settling, said } = scene({ ingested: () => Promise.reject(new Error('away')) });
    await assert.rejects(settling.round(), /away/);
    assert.ok(!said.some((s) => /raise|open|sweep/.test(s)));
    const stopped = scene({ quiet: false });
    stopped.settling.stop();
    await assert.rejects(stopped.settling.round());
    assert.ok(!stopped.said.some((s) => /own|raise|open|sweep/.test(s)));
  });

  test('needed when changed pages take more than clean ones may, and something was changed', () => {
    const { settling } = scene();
    const at = (changed: number, budget: number, written: number): boolean =>
      settling.needed({
        scratchBytes: (changed + 50) * BLCKSZ,
        cleanBlocks: 50,
        cleanBudget: budget,
        blocksWritten: written,
      } as ShimCounters);
    assert.equal(at(3_000, 2_048, 1_000), true);
    assert.equal(at(2_000, 2_048, 1_000), false);
    assert.equal(at(3_000, 2_048, 100), false);
    assert.equal(at(3_000, 0, 1_000), false);
  });
});
