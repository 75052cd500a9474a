/** `lakebase drill revoke`: revokes, verifies and restores the key of a scratch project of its own, and prints how long each took.
 *  What it touches is made for it and deleted afterwards, whatever happens: a key file, a key configuration, a workspace, a project. */
import { renameSync, rmSync } from 'node:fs';
import { randomBytes } from 'node:crypto';
import { LakebaseError, errorMessage, sleep, withDeadline } from '@lakebase/base';
import { type PgConnectOptions, PgConnection, PgError } from '@lakebase/pg-wire';
import type { Command } from 'commander';
import { type ApiClient, type Json, textOf } from '../api-client.ts';
import { type Context, withJson } from './context.ts';
import { ACCOUNT, createLocalKey } from './keys.ts';

const PHASE_MS_MAX = 60_000;
const CYCLES_MAX = 1_000;
/** The key is taken away at another point of this in every cycle: the key manager looks every five seconds. */
const SPREAD_MS = 5_000;

export function addDrillCommand(program: Command, c: Context): void {
  const group = program.command('drill').description('rehearse what hopefully never happens');
  withJson(
    group
      .command('revoke')
      .description(
        'take the key of a scratch project away, see that nothing of it is served any more, give the key back, see that everything is there',
      )
      .option('--keep', 'leave the scratch project for a look')
      .option('--cycles <n>', 'take the key away so many times, and tell medians and 99th percentiles', Number, 1),
  ).action(async (o: { json?: boolean; keep?: boolean; cycles: number }) => {
    if (!Number.isInteger(o.cycles) || o.cycles < 1 || o.cycles > CYCLES_MAX)
      throw new LakebaseError('INVALID_ARGUMENT', `--cycles is a whole number from 1 to ${CYCLES_MAX}`);
    const times = await drill(c, o.keep === true, o.cycles);
    const told = Object.entries(times).map(([what, ms]) => [what, o.cycles === 1 ? ms[0] : distribution(ms)] as const);
    if (o.json === true) c.out(JSON.stringify(Object.fromEntries(told), null, 2));
    else if (o.cycles > 1)
      for (const [what, ms] of Object.entries(times)) {
        const { n, p50, p99 } = distribution(ms);
        c.out(`${what.padEnd(PHASE_CHARS)} n ${n}, p50 ${p50} ms, p99 ${p99} ms`);
      }
  });
}

const PHASE_CHARS = 58;
type Times = Record<string, number[]>;

/** With fewer than a hundred the 99th percentile is the slowest. */
function distribution(ms: readonly number[]): { readonly n: number; readonly p50: number; readonly p99: number } {
  const sorted = ms.toSorted((a, b) => a - b);
  const at = (q: number): number => sorted[Math.min(sorted.length - 1, Math.ceil(q * sorted.length) - 1)] as number;
  return { n: sorted.length, p50: at(0.5), p99: at(0.99) };
}

async function drill(c: Context, keep: boolean, cycles: number): Promise<Times> {
  const api = c.api();
  const name = `drill-${randomBytes(3).toString('hex')}`;
  const file = createLocalKey(c, name);
  const undo: (() => Promise<unknown>)[] = [async () => rmSync(file, { force: true })];
  const times: Times = {};
  const phase = async <T>(what: string, work: () => Promise<T>): Promise<T> => {
    const began = performance.now();
    const result = await work();
    const ms = Math.round(performance.now() - began);
    (times[what] ??= []).push(ms);
    c.err(`${what.padEnd(PHASE_CHARS)} ${String(ms).padStart(6)} ms`);
    return result;
  };
  try {
    const key = await api.call('POST', `${ACCOUNT}/customer-managed-keys`, { local_key_info: { key_name: name } });
    const keyId = textOf(key['customer_managed_key_id']);
    undo.unshift(() => api.call('DELETE', `${ACCOUNT}/customer-managed-keys/${keyId}`));
    const workspace = await api.call('POST', `${ACCOUNT}/workspaces`, {
      workspace_name: name,
      managed_services_customer_managed_key_id: keyId,
    });
    const number = textOf(workspace['workspace_id']);
    undo.unshift(() => api.call('DELETE', `${ACCOUNT}/workspaces/${number}`));
    const inside = api.inWorkspace(number);
    // Before it is made: a creation that fails half way leaves a project too.
    undo.unshift(() => inside.run('DELETE', `projects/${name}`));
    await phase('project under the drill key created', () => inside.run('POST', `projects?project_id=${name}`, {}));
    await play(inside, { name, file, phase, cycles }, c.err);
  } finally {
    if (keep) c.err(`kept: workspace, project and key ${name}`);
    else await cleanUp(c, undo);
  }
  return times;
}

interface Scene {
  readonly name: string;
  readonly file: string;
  readonly cycles: number;
  readonly phase: <T>(what: string, work: () => Promise<T>) => Promise<T>;
}

async function play(api: ApiClient, scene: Scene, say: (line: string) => void): Promise<void> {
  const { phase, cycles } = scene;
  const to = await target(api, scene.name);
  let session = await phase('first connection, table with 1,000 rows committed', async () => {
    const open = await PgConnection.connect(to);
    await open.query("CREATE TABLE drill AS SELECT n, 'marker ' || n AS text FROM generate_series(1, 1000) n");
    return open;
  });
  for (let cycle = 1; ; cycle++) {
    if (cycles > 1) await sleep((SPREAD_MS * cycle) / cycles);
    const again = await revokeAndRestore(api, scene, to, session, say);
    if (cycle >= cycles) return again.end();
    session = again;
  }
}

/** Answers with a session from after the return of the key. */
async function revokeAndRestore(
  api: ApiClient,
  { name, file, phase }: Scene,
  to: PgConnectOptions,
  session: PgConnection,
  say: (line: string) => void,
): Promise<PgConnection> {
  const away = `${file}.revoked`;
  renameSync(file, away);
  try {
    await phase('key taken away: the open session is ended', () => ended(session));
    await phase('a new connection is refused', () => refused(to));
    const { encryption } = (await api.get(`projects/${name}`))['status'] as { encryption: Json };
    say(`state ${textOf(encryption['state'])}: ${textOf(encryption['reason'])}`);
  } finally {
    renameSync(away, file);
  }
  return phase('key given back: every committed row is there', async () => {
    const again = await untilConnected(to);
    const rows = (await again.query('SELECT count(*), sum(n) FROM drill'))[0]?.rows ?? [];
    if (rows[0]?.[0] !== '1000' || rows[0]?.[1] !== '500500')
      throw new LakebaseError('CORRUPT', `rows are missing: ${JSON.stringify(rows[0])}`);
    return again;
  });
}

/** Where and as whom: the owner role of the scratch project with a password made for the drill. */
async function target(api: ApiClient, project: string): Promise<PgConnectOptions> {
  const branch = `projects/${project}/branches/production`;
  const [endpoint] = await api.list(`${branch}/endpoints`, 'endpoints');
  const { host, port } = ((endpoint as Json)['status'] as Json)['hosts'] as { host: string; port: number };
  const { metadata } = await api.run('POST', `${branch}/roles/owner/reset-password`, {});
  return {
    host,
    port,
    user: 'owner',
    password: textOf(metadata['password']),
    database: 'databricks_postgres',
    parameters: { options: `endpoint=${textOf((endpoint as Json)['uid'])}`, application_name: 'lakebase drill' },
    connectTimeoutMs: PHASE_MS_MAX,
  };
}

/** The message the client was sent, when the session ends by it. */
async function ended(session: PgConnection): Promise<void> {
  const error = await withDeadline(session.closed, PHASE_MS_MAX, 'the end of the open session');
  if (!(error instanceof PgError) || !/key/.test(error.message))
    throw new LakebaseError('INTERNAL', `the session did not end because of the key but with: ${errorMessage(error ?? 'no error')}`);
}

async function refused(to: PgConnectOptions): Promise<void> {
  try {
    (await PgConnection.connect(to)).destroy();
  } catch (error) {
    if (error instanceof PgError && /key/.test(error.message)) return;
    throw error;
  }
  throw new LakebaseError('INTERNAL', 'a new connection was let in although the key is away');
}

/** What a client does that tries again until it may. */
async function untilConnected(to: PgConnectOptions): Promise<PgConnection> {
  for (const deadline = Date.now() + PHASE_MS_MAX; ; ) {
    try {
      return await PgConnection.connect(to);
    } catch (error) {
      if (Date.now() > deadline) throw error;
      await sleep(100);
    }
  }
}

async function cleanUp(c: Context, undo: readonly (() => Promise<unknown>)[]): Promise<void> {
  for (const step of undo) {
    try {
      await step();
    } catch (error) {
      c.err(`clean-up: ${errorMessage(error)}`);
    }
  }
}
