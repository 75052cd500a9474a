/** Parts of the supervisor: children, ports, checks, leftovers, configuration files. The whole is tested by tests/system. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import type { ObjectStoreConfig } from '@lakebase/service-kit';
import { homeFrom, portFromEnv } from '../home.ts';
import { checkBuilt, checkHome, diskError } from './checks.ts';
import { type ChildEvent, SupervisedChild } from './child.ts';
import { endLeftovers, findLeftovers } from './leftovers.ts';
import { processStartTime } from './lock.ts';
import { requireObjectStore } from './object-store-settings.ts';
import { choosePorts, isFree, requireFree } from './ports.ts';
import {
  INTERNAL_PORTS,
  type InternalPorts,
  SERVICE_NAMES,
  START_ORDER,
  ensureSecret,
  serviceConfigs,
  settingsFromEnv,
} from './service-configs.ts';
import { lastWords } from './supervisor.ts';

const dir = mkdtempSync(join(tmpdir(), 'lb-super-'));
after(() => rmSync(dir, { recursive: true, force: true }));

/** Events of a child as they come. */
function watch(): { onEvent: (e: ChildEvent) => void; next: () => Promise<ChildEvent> } {
  const queue: ChildEvent[] = [];
  let wake = (): void => {};
  return {
    onEvent: (e) => {
      queue.push(e);
      wake();
    },
    next: async () => {
      while (queue.length === 0) await new Promise<void>((resolve) => (wake = resolve));
      return queue.shift() as ChildEvent;
    },
  };
}
const script = (name: string, code: string, onEvent?: (e: ChildEvent) => void): SupervisedChild =>
  new SupervisedChild({
    name,
    command: process.execPath,
    args: ['-e', code],
    cwd: dir,
    logFile: join(dir, `${name}.log`),
    restartBaseMs: 5,
    ...(onEvent === undefined ? {} : { onEvent }),
  });

test('a child that is killed is started again; its output is in its log', async () => {
  const { onEvent, next } = watch();
  const child = script('restarts', 'console.log("hello"); setInterval(() => {}, 1000)', onEvent);
  child.start();
  const first = child.pid as number;
  process.kill(first, 'SIGKILL');
  const died = await next();
  assert.ok(died.type === 'died' && died.how === 'signal SIGKILL');
  const again = await next();
  assert.ok(again.type === 'restarted' && again.pid !== first);
  await child.stop(5_000);
  assert.equal(child.pid, undefined);
  assert.equal(processStartTime(again.pid), undefined);
});

test('delays grow while it keeps dying', async () => {
  const { onEvent, next } = watch();
  const child = script('dies', 'process.exit(3)', onEvent);
  child.start();
  const delays: number[] = [];
  while (delays.length < 4) {
    const e = await next();
    if (e.type === 'died') delays.push(e.restartInMs);
  }
  await child.stop(1_000);
  assert.equal(child.lastExit?.code, 3);
  assert.ok((delays[3] as number) > (delays[0] as number), delays.join(' '));
});

test('one that ignores SIGTERM is killed after its grace', async () => {
  const child = script(
    'stubborn',
    'process.on("SIGTERM", () => {}); require("fs").writeFileSync("stubborn-ready", ""); setInterval(() => {}, 1000)',
  );
  child.start();
  while (!existsSync(join(dir, 'stubborn-ready'))) await new Promise((resolve) => setImmediate(resolve));
  const { pid } = child;
  await child.stop(100);
  assert.equal(processStartTime(pid as number), undefined);
});

test('a program that does not exist is reported, not thrown', async () => {
  const { onEvent, next } = watch();
  const child = new SupervisedChild({
    name: 'none',
    command: join(dir, 'no-such-program'),
    args: [],
    cwd: dir,
    logFile: join(dir, 'none.log'),
    onEvent,
    restartBaseMs: 5,
  });
  child.start();
  const e = await next();
  assert.ok(e.type === 'died' && /ENOENT/.test(e.how));
  await child.stop(100);
});

test('ports: a taken one names its variable; remembered ones are kept while free', async () => {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  assert.equal(await isFree(port), false);
  await assert.rejects(requireFree(port, 'LAKEBASE_PG_PORT'), {
    code: 'CONFIG',
    message: `port ${port} is taken: set LAKEBASE_PG_PORT to a free one, or stop what uses it`.replace('a free one', 'a free port'),
  });
  const first = await choosePorts(['a', 'b', 'c'], {}, []);
  assert.equal(new Set(Object.values(first.ports)).size, 3);
  const second = await choosePorts(['a', 'b', 'c'], { ...first.ports, b: port }, []);
  assert.deepEqual(second.moved, ['b']);
  assert.equal(second.ports.a, first.ports.a);
  assert.notEqual(second.ports.b, port);
  server.close();
  assert.throws(() => portFromEnv({ X: '70000' }, 'X', 1), /X=70000 is not a port/);
  assert.equal(portFromEnv({ X: '' }, 'X', 7), 7);
});

test('what is wrong with a directory is one line that says what to do', () => {
  const file = join(dir, 'file');
  writeFileSync(file, '');
  assert.throws(() => checkHome(homeFrom({ LAKEBASE_HOME: join(file, 'x') }, '/')), {
    code: 'CONFIG',
    message: /is not a directory: .*LAKEBASE_HOME/,
  });
  for (const [code, text] of [
    ['EROFS', /read-only/],
    ['ENOSPC', /full/],
    ['EACCES', /no permission/],
  ] as const)
    assert.match(diskError('/d', Object.assign(new Error('x'), { code })).message, text);
  assert.throws(() => checkBuilt(dir, ['services/x/dist/main.js']), /is not built: run npm run build/);
  assert.equal(homeFrom({}, '/some/where').dir, '/some/where/.lakebase');
});

test('the secret is made once, private, and a damaged one is refused', () => {
  const home = homeFrom({ LAKEBASE_HOME: join(dir, 'home') }, '/');
  mkdirSync(home.dir);
  ensureSecret(home);
  const made = readFileSync(home.secretFile, 'utf8');
  assert.match(made, /^[0-9a-f]{64}\n$/);
  assert.equal(statSync(home.secretFile).mode & 0o777, 0o600);
  ensureSecret(home);
  assert.equal(readFileSync(home.secretFile, 'utf8'), made);
  writeFileSync(home.secretFile, 'abc');
  assert.throws(() => ensureSecret(home), { code: 'CONFIG' });
});

test('services left behind are found by their configuration file and ended; others are not', async () => {
  const config = join(dir, 'config', 'sk1.json');
  const run = (path: string) =>
    spawn(process.execPath, ['-e', 'console.log(1); setInterval(() => {}, 1000)', 'x', '--config', path], {
      stdio: ['ignore', 'pipe', 'ignore'],
    });
  const ours = run(config);
  const other = run('/somewhere/else/sk1.json');
  await Promise.all([once(ours.stdout, 'data'), once(other.stdout, 'data')]);
  assert.deepEqual(
    findLeftovers(new Set([config])).map((l) => l.pid),
    [ours.pid],
  );
  assert.equal(await endLeftovers(new Set([config]), 5_000), 1);
  assert.notEqual(processStartTime(other.pid as number), undefined);
  other.kill();
});

test('every service has a configuration; each safekeeper knows the two others; public ports are where they were asked', () => {
  const ports = Object.fromEntries(INTERNAL_PORTS.map((name, i) => [name, 20_000 + i])) as unknown as InternalPorts;
  const configs = serviceConfigs(
    homeFrom({ LAKEBASE_HOME: dir }, '/'),
    '/repo',
    ports,
    settingsFromEnv({ LAKEBASE_LISTEN: '0.0.0.0' }, 5, 6),
  );
  assert.deepEqual([...START_ORDER.flat()].sort(), [...SERVICE_NAMES].sort());
  for (const name of ['sk1', 'sk2', 'sk3'] as const) {
    const peers = (configs[name].peers as { id: string }[]).map((p) => p.id);
    assert.equal(peers.length, 2);
    assert.ok(!peers.includes(name));
    assert.equal(configs[name].httpHost, '127.0.0.1', 'internal listeners stay on loopback');
  }
  assert.equal(configs.proxy.listenHost, '0.0.0.0');
  assert.equal(configs.proxy.managerUrl, 'http://127.0.0.1:6');
  assert.ok((configs.compute.runtimeDir as string).length < 40, 'socket paths are short');
  assert.throws(() => settingsFromEnv({ LAKEBASE_LOG_LEVEL: 'loud' }, 1, 2), /LAKEBASE_LOG_LEVEL/);
  assert.throws(() => settingsFromEnv({ LAKEBASE_TLS_CERT: 'x' }, 1, 2), /together/);
});

test('an operator may set what concerns keys, and nothing else of the key manager', () => {
  const home = homeFrom({ LAKEBASE_HOME: join(dir, 'keyed') }, '/');
  const ports = Object.fromEntries(INTERNAL_PORTS.map((name, i) => [name, 20_000 + i])) as unknown as InternalPorts;
  const config = (): Record<string, unknown> => serviceConfigs(home, '/repo', ports, settingsFromEnv({}, 5, 6)).keymanager;
  assert.equal(config().rotateKekDays, undefined);
  mkdirSync(home.dir, { recursive: true });
  writeFileSync(home.keySettingsFile, '{ "rotateKekDays": 90, "allowedHosts": ["*.vault.azure.net"] }');
  assert.equal(config().rotateKekDays, 90);
  assert.equal(config().httpHost, '127.0.0.1');
  writeFileSync(home.keySettingsFile, '{ "httpHost": "0.0.0.0" }');
  assert.throws(config, /there is no setting httpHost/);
  writeFileSync(home.keySettingsFile, '{');
  assert.throws(config, /cannot read .*keymanager\.json/);
});

test('every service that stores has the same object store, and an installation does not change it unnoticed', async () => {
  const home = homeFrom({ LAKEBASE_HOME: join(dir, 'stored') }, '/');
  mkdirSync(home.config, { recursive: true });
  const ports = Object.fromEntries(INTERNAL_PORTS.map((name, i) => [name, 20_000 + i])) as unknown as InternalPorts;
  const stores = (env: NodeJS.ProcessEnv): unknown[] => {
    const configs = serviceConfigs(home, '/repo', ports, settingsFromEnv(env, 5, 6));
    return (['keymanager', 'sk1', 'sk2', 'sk3', 'pageserver', 'manager'] as const).map((name) => configs[name].objectStore);
  };
  const only = (env: NodeJS.ProcessEnv): ObjectStoreConfig => {
    const all = stores(env);
    for (const one of all) assert.deepEqual(one, all[0]);
    return all[0] as ObjectStoreConfig;
  };
  const ours = only({});
  assert.deepEqual(ours, { kind: 'directory', path: join(home.dir, 'objects') });
  const said: string[] = [];
  const require = (config: ObjectStoreConfig): Promise<void> => requireObjectStore(home, config, (line) => said.push(line));
  await require(ours);
  await require(ours);
  writeFileSync(home.objectStoreFile, '{ "kind": "s3", "bucket": "data", "region": "eu-central-1" }');
  const s3 = only({});
  assert.equal(s3.kind, 's3');
  await assert.rejects(require(s3), /keeps its objects in home:\/objects.*s3:\/\/data/);
  rmSync(join(home.dir, 'objects'), { recursive: true });
  await assert.rejects(require(ours), /empty or not there: mount its disk/);
  rmSync(join(home.config, 'objectstore-location'));
  writeFileSync(join(home.dir, 'objects'), 'a file');
  await assert.rejects(require(ours), /cannot be used/);
  assert.deepEqual(said, []);
  assert.equal(only({ LAKEBASE_OBJECT_STORE: 'gs://bucket/prefix' }).kind, 'gcs');
  assert.throws(() => stores({ LAKEBASE_OBJECT_STORE: 's3:/' }), /LAKEBASE_OBJECT_STORE: /);
  writeFileSync(home.objectStoreFile, '{ "kind": "s3", "bucket": "data", "secretAccessKey": "x" }');
  assert.throws(() => stores({}), /objectstore\.json: there is no "secretAccessKey"/);
});

test('the last error of a log is the line a person gets', () => {
  const log = join(dir, 'x.log');
  writeFileSync(log, '{"level":50,"err":"cannot bind","msg":"fatal"}\n{"level":30,"msg":"stopped"}\n');
  assert.match(lastWords(log), /^cannot bind/);
  assert.match(lastWords(join(dir, 'none')), /no log/);
});
