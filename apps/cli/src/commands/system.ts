/** `lakebase up|status|psql|connection-string|start|suspend|logs`. */
import { spawn } from 'node:child_process';
import { createReadStream, existsSync, openSync, readFileSync, statSync, watch } from 'node:fs';
import { delimiter, join } from 'node:path';
import { LakebaseError, errorMessage, sleep } from '@lakebase/base';
import { type Command, Argument } from 'commander';
import { type Json, textOf } from '../api-client.ts';
import { connectionEnv, connectionUrl, findConnection } from '../connection.ts';
import { HTTP_PORT, PG_PORT, portFromEnv, readPorts, repositoryRoot } from '../home.ts';
import { printTable, statusOf } from '../output.ts';
import { HomeLock } from '../supervisor/lock.ts';
import { SERVICE_NAMES, type ServiceName, configPath, reachable, settingsFromEnv } from '../supervisor/service-configs.ts';
import { Supervisor } from '../supervisor/supervisor.ts';
import { type BranchOptions, type Context, DEFAULTS, branchPath, show, withBranch, withJson, withProject } from './context.ts';

const FIRST_PROJECT_MS_MAX = 60_000;
const RECOVERY_LOOK_MS = 2_000;
const RECOVERY_ROUNDS = 300;
const RECOVERY_ROUNDS_MIN = 4;

export function addSystemCommands(program: Command, c: Context): void {
  program
    .command('up')
    .description('run the whole system in the foreground until Ctrl-C (what npm start does)')
    .action(() => up(c));
  withJson(program.command('status').description('services and endpoints')).action((o: { json?: boolean }) => status(c, o.json === true));
  withProject(
    program
      .command('connection-string [branch]')
      .description('print the URL of a branch')
      .option('--role <role>', 'log in as this role; one that uses tokens gets one')
      .option('--database <name>', 'database', DEFAULTS.database),
  ).action(async (branch: string | undefined, o: { project: string; role?: string; database: string }) => {
    c.out(
      connectionUrl(
        await findConnection(c.api(), c.home, {
          project: o.project,
          branch: branch ?? DEFAULTS.branch,
          role: o.role,
          database: o.database,
        }),
      ),
    );
  });
  withProject(
    program
      .command('psql [branch] [args...]')
      .passThroughOptions()
      .allowUnknownOption()
      .description('open psql on a branch; what follows the branch or -- goes to psql')
      .option('--role <role>', 'log in as this role; one that uses tokens gets one')
      .option('--database <name>', 'database', DEFAULTS.database),
  ).action(async (branch: string | undefined, args: string[], o: { project: string; role?: string; database: string }) => {
    const named = branch !== undefined && !branch.startsWith('-') ? branch : undefined;
    await psql(c, { ...o, branch: named ?? DEFAULTS.branch }, named === branch ? args : [branch as string, ...args]);
  });
  for (const [name, what] of [
    ['start', 'start the compute of a branch'],
    ['suspend', 'stop the compute of a branch; the next connection wakes it'],
  ] as const)
    withJson(withBranch(program.command(`${name} [endpoint]`).description(what))).action(
      async (endpoint: string | undefined, o: BranchOptions) => {
        const { response } = await c
          .api()
          .run('POST', `${branchPath(o)}/endpoints/${encodeURIComponent(endpoint ?? DEFAULTS.endpoint)}/${name}`, {});
        show(c, o.json, response);
      },
    );
  program
    .command('logs')
    .description('print the log of a service, or of all')
    .addArgument(new Argument('[service]').choices(SERVICE_NAMES))
    .option('-f, --follow', 'go on as it grows')
    .option('-n, --lines <n>', 'last lines', Number, 100)
    .action((service: ServiceName | undefined, o: { follow?: boolean; lines: number }) => logs(c, service, o));
}

async function up(c: Context): Promise<void> {
  const settings = settingsFromEnv(
    c.env,
    portFromEnv(c.env, 'LAKEBASE_PG_PORT', PG_PORT),
    portFromEnv(c.env, 'LAKEBASE_HTTP_PORT', HTTP_PORT),
  );
  const say = (line: string): void => c.out(`lakebase: ${line}`);
  const supervisor = new Supervisor({ home: c.home, root: repositoryRoot(), settings, say });
  const ended = Promise.withResolvers<void>();
  let signals = 0;
  const onSignal = (): void => {
    signals++;
    if (signals === 1) say('stopping (again to stop at once)');
    supervisor.stop().then(ended.resolve, ended.reject);
  };
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, onSignal);
  try {
    const since = new Date();
    await supervisor.start();
    const url = await firstProject(c, supervisor);
    await supervisor.markStore();
    const api = `http://${settings.listenHost === '0.0.0.0' ? 'localhost' : settings.listenHost}:${settings.httpPort}`;
    for (const line of [
      'ready',
      `  connect  ${url}`,
      `  API      ${api}/api/2.0/postgres  (token in ${c.home.adminTokenFile})`,
      `  data     ${c.home.dir}`,
      '  stop     Ctrl-C',
    ])
      say(line);
    void sayRecoveries(c, supervisor, since, say);
  } catch (error) {
    if (!supervisor.stopping) await supervisor.stop();
    if (signals === 0) throw error;
  }
  await ended.promise;
  say('stopped');
  process.exit(0);
}

/** The URL of the default project, once it can be connected to. */
async function firstProject(c: Context, supervisor: Supervisor): Promise<string | undefined> {
  const deadline = Date.now() + FIRST_PROJECT_MS_MAX;
  for (let last = ''; !supervisor.stopping; ) {
    try {
      const branch = await c.api().get(branchPath(DEFAULTS));
      if (statusOf(branch).current_state === 'READY') return connectionUrl(await findConnection(c.api(), c.home, DEFAULTS));
      last = textOf(statusOf(await c.api().get(`projects/${DEFAULTS.project}`)).error, 'it is being created');
    } catch (error) {
      if (error instanceof LakebaseError && error.code === 'NOT_FOUND' && !existsSync(c.home.credentialsFile))
        return `postgresql://localhost:${readPorts(c.home)?.pgPort ?? PG_PORT}/${DEFAULTS.database}  (with the role and password you have; new ones: lakebase roles reset-password)`;
      // Deleted by its owner: nothing to print, and nothing wrong.
      if (error instanceof LakebaseError && error.code === 'NOT_FOUND')
        return '(the default project is deleted; see "lakebase projects list")';
      last = errorMessage(error);
    }
    if (Date.now() > deadline) throw new LakebaseError('TIMEOUT', `the default project is not ready: ${last}`);
    await sleep(50);
  }
  return undefined;
}

/** After a loss of the machine: which branches came back, and up to where. Said for as long as it goes on. */
async function sayRecoveries(c: Context, supervisor: Supervisor, since: Date, say: (line: string) => void): Promise<void> {
  const said = new Set<string>();
  for (let round = 0; round < RECOVERY_ROUNDS && !supervisor.stopping; round++) {
    try {
      const { recoveries } = await c.api().call('GET', 'lakebase/wal-recoveries');
      for (const r of recoveries as Json[]) {
        const key = `${textOf(r['timeline_id'], '')} ${textOf(r['time'], '')}`;
        if (said.has(key) || Date.parse(textOf(r['time'], '')) < since.getTime()) continue;
        said.add(key);
        const seen = r['lastCommitTime'] === null ? '' : `, last commit seen ${textOf(r['lastCommitTime'], '')}`;
        say(
          `WARNING: no safekeeper had the WAL of ${textOf(r['project_id'], '')}/${textOf(r['branch_id'], '')} any more. It is back up to ${textOf(r['startLsn'], '')}${seen}; what was committed after that and was not in the object store yet is LOST (lakebase storage recoveries)`,
        );
      }
      const { safekeepers, changes } = await c.api().call('GET', 'lakebase/safekeepers');
      const open = (safekeepers as Json[]).some((s) => s['lost'] !== 0) || (changes as Json[]).length > 0;
      if (!open && round >= RECOVERY_ROUNDS_MIN) return;
    } catch {
      // It is in the Manager's log too.
    }
    await sleep(RECOVERY_LOOK_MS);
  }
}

async function status(c: Context, json: boolean): Promise<void> {
  const supervisor = HomeLock.holder(c.home.lockFile);
  const services = await Promise.all(
    SERVICE_NAMES.filter((name) => (name !== 'pageserver2' && name !== 'sk4') || existsSync(configPath(c.home, name))).map(
      async (name): Promise<Json> => ({ service: name, ...(await serviceHealth(c, name)) }),
    ),
  );
  let endpoints: Json[] = [];
  let problem: string | undefined;
  try {
    const api = c.api();
    for (const project of await api.list('projects', 'projects'))
      for (const branch of await api.list(`${String(project.name)}/branches`, 'branches'))
        endpoints.push(...(await api.list(`${String(branch.name)}/endpoints`, 'endpoints')));
  } catch (error) {
    problem = errorMessage(error);
    endpoints = [];
  }
  if (json)
    c.out(
      JSON.stringify(
        { home: c.home.dir, supervisor: supervisor ?? null, services, endpoints, ...(problem === undefined ? {} : { problem }) },
        null,
        2,
      ),
    );
  else {
    c.out(supervisor === undefined ? `not running in ${c.home.dir}` : `running in ${c.home.dir} (process ${supervisor})`);
    printTable(
      services,
      [
        ['SERVICE', (s) => s.service],
        ['STATE', (s) => s.state],
        ['HTTP', (s) => s.url],
        ['', (s) => s.detail ?? ''],
      ],
      c.out,
    );
    if (endpoints.length > 0) {
      c.out('');
      printTable(
        endpoints,
        [
          ['ENDPOINT', (e) => e.name],
          ['STATE', (e) => statusOf(e).current_state],
          ['LAST ACTIVE', (e) => statusOf(e).last_active_time],
          ['ERROR', (e) => statusOf(e).last_error ?? ''],
        ],
        c.out,
      );
    }
    if (problem !== undefined) c.err(`lakebase: ${problem}`);
  }
  if (supervisor === undefined || services.some((s) => s.state !== 'healthy')) process.exitCode = 1;
}

async function serviceHealth(c: Context, name: ServiceName): Promise<Json> {
  const path = configPath(c.home, name);
  if (!existsSync(path)) return { state: 'not configured' };
  const config = JSON.parse(readFileSync(path, 'utf8')) as { httpHost: string; httpPort: number };
  const url = `http://${reachable(config.httpHost)}:${config.httpPort}`;
  try {
    const response = await fetch(`${url}/healthz`, { signal: AbortSignal.timeout(2_000) });
    const { status: _status, ...detail } = (await response.json()) as Json;
    return { state: response.ok ? 'healthy' : 'unhealthy', url, ...(Object.keys(detail).length === 0 ? {} : { detail }) };
  } catch {
    return { state: 'down', url };
  }
}

async function psql(
  c: Context,
  o: { project: string; branch: string; role?: string; database: string },
  args: readonly string[],
): Promise<void> {
  const connection = await findConnection(c.api(), c.home, o);
  const path = (c.env.PATH ?? '')
    .split(delimiter)
    .map((dir) => join(dir, 'psql'))
    .find((file) => existsSync(file));
  if (path === undefined) {
    c.err('lakebase: there is no psql on this machine; connect with any Postgres client:');
    c.out(connectionUrl(connection));
    return;
  }
  const child = spawn(path, args, { stdio: 'inherit', env: { ...c.env, ...connectionEnv(connection) } });
  // psql handles Ctrl-C itself: it cancels the query.
  process.on('SIGINT', () => {});
  await new Promise<void>((resolve, reject) => {
    child.once('error', reject);
    child.once('exit', (code) => {
      process.exitCode = code ?? 1;
      resolve();
    });
  });
}

async function logs(c: Context, service: ServiceName | undefined, o: { follow?: boolean; lines: number }): Promise<void> {
  const names = service === undefined ? SERVICE_NAMES : [service];
  const files = names.map((name) => ({ name, path: join(c.home.logs, `${name}.log`) })).filter((f) => existsSync(f.path));
  if (files.length === 0) throw new LakebaseError('NOT_FOUND', `no logs in ${c.home.logs}: has Lakebase run on this directory?`);
  const prefix = (name: string): string => (files.length > 1 ? `${name}: ` : '');
  const positions = new Map<string, number>();
  for (const f of files) {
    positions.set(f.path, statSync(f.path).size);
    const lines = readFileSync(f.path, 'utf8').trimEnd().split('\n').slice(-o.lines);
    for (const line of lines) c.out(prefix(f.name) + line);
  }
  if (o.follow !== true) return;
  for (const f of files) {
    const more = (): void => {
      const { size } = statSync(f.path, { throwIfNoEntry: false }) ?? { size: 0 };
      const from = positions.get(f.path) as number;
      if (size === from) return;
      positions.set(f.path, size);
      createReadStream(f.path, { fd: openSync(f.path, 'r'), start: size < from ? 0 : from, end: size - 1, encoding: 'utf8' }).on(
        'data',
        (text) => {
          for (const line of String(text).trimEnd().split('\n')) c.out(prefix(f.name) + line);
        },
      );
    };
    watch(f.path, more);
  }
  await new Promise<void>((resolve) => process.once('SIGINT', resolve));
  process.exit(0);
}
