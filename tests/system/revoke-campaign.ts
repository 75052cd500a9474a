/** `npm run drill [-- --cycles N]`: revokes and gives back a customer key N times under load and prints the distribution of the times that count
 *  (issue 4, section 5: p99 of a revocation at most 15 s, and 15 s back). Each cycle begins at another point between two probes.
 *  Exit code 1 when a bound is missed. `npm test` has one cycle, in revocation.test.ts. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { isCode, sleep } from '@lakebase/base';
import { parseProjectUid, parseTimelineId } from '@lakebase/ids';
import { Cluster, ClusterInternals, eventually } from '@lakebase/testkit';
import type pg from 'pg';
import { KeyedProject } from './key-scene.ts';

const BOUND_MS = 15_000;
const SAFEKEEPERS = ['sk1', 'sk2', 'sk3'] as const;
const MEASURES = [
  'open session ended',
  'new sessions refused',
  'pageserver refuses',
  'safekeepers refuse',
  'nothing is served',
  'serves again',
] as const;

const { values } = parseArgs({ options: { cycles: { type: 'string', default: '20' } } });
const cycles = Number(values.cycles);
const times = new Map<(typeof MEASURES)[number], number[]>(MEASURES.map((m) => [m, []]));

await using cluster = await Cluster.start();
const project = await KeyedProject.create(cluster, 'campaign');
const internals = new ClusterInternals(cluster);
{
  const client = await project.connect();
  await client.query('CREATE TABLE commits (n int)');
  await client.end();
}
const [timeline = ''] = readdirSync(join(cluster.home, 'data', 'pageserver', 'timelines', project.uid));
const ids = [parseProjectUid(project.uid), parseTimelineId(timeline)] as const;

/** Until the call is refused for the key's sake. */
const refused = (what: string, call: () => Promise<unknown>): Promise<true> =>
  eventually(
    what,
    async () => {
      try {
        await call();
      } catch (error) {
        if (isCode(error, 'KEY_REVOKED') || /revoked/.test((error as Error).message)) return true;
      }
      await sleep(20);
      return undefined;
    },
    60_000,
  );
const session = async (): Promise<void> => {
  const client = await project.connect();
  try {
    await client.query('SELECT count(*) FROM commits');
  } finally {
    await client.end();
  }
};

let committed = 0;
for (let cycle = 1; cycle <= cycles; cycle++) {
  const open: pg.Client = await project.connect();
  const ended = new Promise<void>((resolve) => open.once('end', () => resolve()));
  await open.query(`INSERT INTO commits VALUES (${++committed})`);
  await sleep((5_000 * cycle) / cycles); // anywhere between two probes
  const began = performance.now();
  project.revoke();
  const since = (name: (typeof MEASURES)[number]) => (): void => void times.get(name)?.push(performance.now() - began);
  await Promise.all([
    ended.then(since('open session ended')),
    refused('new sessions are refused', session).then(since('new sessions refused')),
    refused('the pageserver refuses', () => internals.pageserver.checkpoint(...ids)).then(since('pageserver refuses')),
    Promise.all(SAFEKEEPERS.map((sk) => refused(`${sk} refuses`, () => internals.safekeeper(sk).status(...ids)))).then(
      since('safekeepers refuse'),
    ),
  ]);
  since('nothing is served')();
  const back = performance.now();
  project.restore();
  await eventually(
    'it serves again',
    () =>
      session().then(
        () => true as const,
        () => undefined,
      ),
    60_000,
  );
  times.get('serves again')?.push(performance.now() - back);
  const client = await project.connect();
  const { rows } = await client.query<{ n: number }>('SELECT count(*)::int AS n FROM commits');
  await client.end();
  if (rows[0]?.n !== committed) throw new Error(`${committed} commits were acknowledged, ${rows[0]?.n} are there`);
  process.stderr.write(
    `cycle ${cycle} of ${cycles}: ${MEASURES.map((m) => `${m} ${Math.round(times.get(m)?.at(-1) ?? 0)} ms`).join(', ')}\n`,
  );
}

const at = (list: readonly number[], p: number): number =>
  [...list].sort((a, b) => a - b)[Math.max(0, Math.ceil(p * list.length) - 1)] as number;
process.stdout.write(`\n| ms, ${cycles} cycles | p50 | p99 | max |\n|---|---|---|---|\n`);
for (const [name, list] of times)
  process.stdout.write(`| ${name} | ${[at(list, 0.5), at(list, 0.99), Math.max(...list)].map((n) => Math.round(n)).join(' | ')} |\n`);
const missed = (['nothing is served', 'serves again'] as const).filter((name) => at(times.get(name) ?? [], 0.99) > BOUND_MS);
if (missed.length > 0) process.stderr.write(`p99 over ${BOUND_MS} ms: ${missed.join(', ')}\n`);
process.exitCode = missed.length === 0 ? 0 : 1;
