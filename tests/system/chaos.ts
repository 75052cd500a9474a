/** `npm run chaos [-- --minutes 5] [--seed 1]`: random kill -9 of every kind of process under load, for minutes; then everything is checked.
 *  `npm run chaos -- --storage`: the pageserver killed at every place on the way into the object store, and the other storage faults, one after another. */
import { parseArgs } from 'node:util';
import { sleep } from '@lakebase/base';
import { Cluster, type ServiceName } from '@lakebase/testkit';
import { Ledger } from './ledger.ts';
import { KILL_PLACES, StorageFaults } from './storage-faults.ts';

const { values } = parseArgs({
  options: {
    minutes: { type: 'string', default: '5' },
    seed: { type: 'string', default: String(Date.now() % 1_000_000) },
    storage: { type: 'boolean', default: false },
    help: { type: 'boolean' },
  },
});
if (values.help === true) {
  process.stdout.write('usage: npm run chaos [-- --minutes 5] [--seed N] [--storage]\n');
  process.exit(0);
}
if (values.storage) {
  await storageFaults();
  process.exit(0);
}
let state = Number(values.seed) >>> 0;
const random = (n: number): number => {
  state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0; // Numerical Recipes' generator: a seed repeats the order of kills, not their timing
  return state % n;
};
const victims: (ServiceName | 'postgres')[] = ['postgres', 'postgres', 'sk1', 'sk2', 'sk3', 'pageserver', 'proxy', 'manager', 'compute'];

process.stdout.write(`chaos: seed ${values.seed}, ${values.minutes} minutes\n`);
await using cluster = await Cluster.start();
const ledger = new Ledger(cluster);
await ledger.create();
ledger.start(4);
const end = performance.now() + Number(values.minutes) * 60_000;
const kills = new Map<string, number>();
while (performance.now() < end) {
  await ledger.progress(20, 90_000);
  const victim = victims[random(victims.length)] as ServiceName | 'postgres';
  if (cluster.kill(victim).length > 0) kills.set(victim, (kills.get(victim) ?? 0) + 1);
  await sleep(random(2_000));
}
await ledger.progress(50, 90_000);
await ledger.stop();
await ledger.verify();
process.stdout.write(
  `chaos: ${ledger.acknowledged.size} acknowledged rows, all there once; kills: ${[...kills].map(([n, c]) => `${n} ${c}`).join(', ')}\n`,
);

async function storageFaults(): Promise<void> {
  const say = (line: string): void => void process.stdout.write(`chaos: ${line}\n`);
  await using faults = await StorageFaults.start(say);
  for (const place of KILL_PLACES) await faults.killPageserverAt(place);
  await faults.failingObjectStore();
  await faults.loseObjectStore();
  await faults.losePageserverDisk();
  await faults.rotRemoteLayer();
  await faults.scrubbed('after all of it');
  say(`${faults.ledger.acknowledged.size} acknowledged rows, all there once; every stored object is as it was written`);
}
