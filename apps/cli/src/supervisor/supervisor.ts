/** Runs the whole system on one machine: checks, configuration, ordered start, restarts, ordered stop.
 *  Invariants: a group of services starts when the one before it is healthy; stop goes in the reverse order, so computes are suspended
 *  while the services they write to still run. */
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { LakebaseError, errorMessage, sleep } from '@lakebase/base';
import type { ObjectStoreConfig } from '@lakebase/service-kit';
import { type Home } from '../home.ts';
import { checkBuilt, checkHome, diskError } from './checks.ts';
import { type ChildEvent, EXIT_CONFIG, SupervisedChild } from './child.ts';
import { endLeftovers } from './leftovers.ts';
import { markStore, requireOwnStore } from './installation.ts';
import { HomeLock } from './lock.ts';
import { readObjectStoreSettings, requireObjectStore } from './object-store-settings.ts';
import { choosePorts, requireFree } from './ports.ts';
import {
  INTERNAL_PORTS,
  type InternalPorts,
  SERVICE_NAMES,
  START_ORDER,
  type ServiceName,
  type Settings,
  configPath,
  ensureSecret,
  entryPoint,
  isWanted,
  kindOf,
  reachable,
  serviceConfigs,
  writeJson,
} from './service-configs.ts';

const KEYGUARD = 'native/keyguard/build/keyguard.so';
/** Services that hold keys or pages in memory, the proxy through which rows pass, and the compute host, whose limit on core files its computes inherit. */
const GUARDED: ReadonlySet<ServiceName> = new Set([
  'keymanager',
  'sk1',
  'sk2',
  'sk3',
  'sk4',
  'pageserver',
  'pageserver2',
  'proxy',
  'compute',
]);
const HEALTHY_MS_MAX = 90_000;
/** Longer than a service's own limit for its stop (30 s). */
const STOP_GRACE_MS = 35_000;

export interface SupervisorOptions {
  readonly home: Home;
  readonly root: string;
  readonly settings: Settings;
  readonly say: (line: string) => void;
}

export class Supervisor {
  readonly #o: SupervisorOptions;
  readonly #children = new Map<ServiceName, SupervisedChild>();
  #lock: HomeLock | undefined;
  readonly #healthUrls = new Map<ServiceName, string>();
  /** A store that does not say yet whose it is. */
  #toMark: ObjectStoreConfig | undefined;
  #stopping = false;
  #stopped: Promise<void> | undefined;

  constructor(options: SupervisorOptions) {
    this.#o = options;
  }

  get stopping(): boolean {
    return this.#stopping;
  }

  async start(): Promise<void> {
    const { home, root } = this.#o;
    checkBuilt(root, [...new Set(SERVICE_NAMES.map(entryPoint)), 'native/pgshim/build/pgshim.so']);
    checkHome(home);
    this.#lock = HomeLock.acquire(home.lockFile);
    this.#o.say(`starting in ${home.dir}`);
    try {
      await this.#prepare();
      for (const all of START_ORDER) {
        const group = all.filter((name) => isWanted(name, this.#o.settings));
        for (const name of group) this.#startChild(name);
        await Promise.all(group.map((name) => this.#healthy(name)));
      }
    } catch (error) {
      await this.stop();
      throw error;
    }
  }

  /** There is something in the store that must not be lost over a second installation. */
  async markStore(): Promise<void> {
    if (this.#toMark === undefined) return;
    try {
      await markStore(this.#o.home, this.#toMark);
    } catch (error) {
      this.#o.say(`the object store could not be marked as this installation's; the next start does it: ${errorMessage(error)}`);
    }
  }

  /** Idempotent; a second call while it is on makes it abrupt. */
  stop(): Promise<void> {
    if (this.#stopped !== undefined) {
      for (const child of this.#children.values()) child.kill('SIGKILL');
      return this.#stopped;
    }
    this.#stopping = true;
    this.#stopped = (async () => {
      for (const group of [...START_ORDER].reverse()) {
        await Promise.all(group.map(async (name) => this.#children.get(name)?.stop(STOP_GRACE_MS)));
      }
      this.#lock?.release();
    })();
    return this.#stopped;
  }

  async #prepare(): Promise<void> {
    const { home, root, settings, say } = this.#o;
    try {
      const store = readObjectStoreSettings(home, settings.objectStoreUrl);
      this.#toMark = (await requireOwnStore(home, store, say)) ? store : undefined;
      ensureSecret(home);
      const ended = await endLeftovers(new Set(SERVICE_NAMES.map((name) => configPath(home, name))));
      if (ended > 0) say(`ended ${ended} services that an earlier run left behind`);
      await requireFree(settings.pgPort, 'LAKEBASE_PG_PORT', settings.listenHost);
      await requireFree(settings.httpPort, 'LAKEBASE_HTTP_PORT', settings.listenHost);
      const file = home.portsFile;
      const remembered = existsSync(file) ? (JSON.parse(readFileSync(file, 'utf8')) as Partial<InternalPorts>) : {};
      const known = Object.fromEntries(
        INTERNAL_PORTS.filter((n) => typeof remembered[n] === 'number').map((n) => [n, remembered[n]]),
      ) as Partial<Record<(typeof INTERNAL_PORTS)[number], number>>;
      const { ports, moved } = await choosePorts(INTERNAL_PORTS, known, [settings.pgPort, settings.httpPort]);
      if (moved.length > 0) say(`internal ports moved because others use them now: ${moved.join(', ')}`);
      writeJson(file, { ...ports, pgPort: settings.pgPort, httpPort: settings.httpPort });
      const configs = serviceConfigs(home, root, ports, settings);
      this.#checkKeyguard(configs.keymanager['requireKeyguard'] === true);
      await requireObjectStore(home, configs.pageserver['objectStore'] as ObjectStoreConfig, say);
      for (const name of SERVICE_NAMES) {
        if (!isWanted(name, settings)) {
          rmSync(configPath(home, name), { force: true });
          continue;
        }
        writeJson(configPath(home, name), configs[name]);
        this.#healthUrls.set(name, `http://${reachable(configs[name].httpHost as string)}:${configs[name].httpPort as number}/healthz`);
      }
    } catch (error) {
      throw error instanceof LakebaseError ? error : diskError(home.dir, error as NodeJS.ErrnoException);
    }
  }

  #checkKeyguard(required: boolean): void {
    if (existsSync(join(this.#o.root, KEYGUARD))) return;
    const what = `${KEYGUARD} is not built, so keys in memory can end up in core files and swap, and other processes of this user can read them`;
    if (required) throw new LakebaseError('CONFIG', `${what}; keymanager.json has requireKeyguard: run npm run build`);
    this.#o.say(`WARNING: ${what}; run npm run build ("requireKeyguard": true in ${this.#o.home.keySettingsFile} makes this an error)`);
  }

  #startChild(name: ServiceName): void {
    process.env['MALLOC_ARENA_MAX'] ??= '2'; // glibc's arena per thread holds memory that idle threads never use again
    const { home, root } = this.#o;
    const guard = GUARDED.has(name) ? guardedEnv(root, name) : undefined;
    const child = new SupervisedChild({
      name,
      command: process.execPath,
      args: [...nodeFlags(name), join(root, entryPoint(name)), '--config', configPath(home, name)],
      // Not the caller's directory: it may be removed while we run.
      cwd: home.dir,
      logFile: join(home.logs, `${name}.log`),
      ...(guard === undefined ? {} : { env: guard }),
      onEvent: (event) => this.#tell(event),
    });
    this.#children.set(name, child);
    child.start();
  }

  #tell(event: ChildEvent): void {
    if (this.#stopping) return;
    if (event.type === 'died')
      this.#o.say(
        `${event.name} died (${event.how}); starting it again in ${event.restartInMs} ms; see ${join(this.#o.home.logs, `${event.name}.log`)}`,
      );
    else this.#o.say(`${event.name} runs again (process ${event.pid})`);
  }

  async #healthy(name: ServiceName): Promise<void> {
    const child = this.#children.get(name) as SupervisedChild;
    const url = this.#healthUrls.get(name) as string;
    const deadline = Date.now() + HEALTHY_MS_MAX;
    for (;;) {
      if (this.#stopping) throw new LakebaseError('CLOSED', 'stopped');
      if (child.lastExit?.code === EXIT_CONFIG)
        throw new LakebaseError('CONFIG', `${name} does not start: ${lastWords(join(this.#o.home.logs, `${name}.log`))}`);
      if (child.deaths >= 5)
        throw new LakebaseError('UNAVAILABLE', `${name} does not start: ${lastWords(join(this.#o.home.logs, `${name}.log`))}`);
      if (await answers(url)) return;
      if (Date.now() > deadline)
        throw new LakebaseError(
          'TIMEOUT',
          `${name} is not healthy after ${HEALTHY_MS_MAX / 1000} s; see ${join(this.#o.home.logs, `${name}.log`)}`,
        );
      await sleep(25);
    }
  }
}

async function answers(url: string): Promise<boolean> {
  try {
    const response = await fetch(url, { signal: AbortSignal.timeout(2_000) });
    await response.arrayBuffer();
    return response.ok;
  } catch {
    return false;
  }
}

/** The last error a service logged, for the one line a person gets to see. */
export function lastWords(logFile: string): string {
  try {
    const lines = readFileSync(logFile, 'utf8').trim().split('\n').slice(-200).reverse();
    for (const line of lines) {
      try {
        const entry = JSON.parse(line) as { err?: string; level?: number };
        if (typeof entry.err === 'string' && (entry.level ?? 0) >= 50) return `${entry.err} (${logFile})`;
      } catch {
        /* not a log line of ours */
      }
    }
    const error = lines.find((line) => /Error/.test(line));
    return `${error?.trim().slice(0, 300) ?? lines[0]?.slice(0, 300) ?? 'it says nothing'} (${logFile})`;
  } catch (error) {
    return `no log: ${errorMessage(error)}`;
  }
}

/** native/keyguard: no core files, no ptrace, no swap, freed memory overwritten. Compute host and proxy hold no keys worth locking their memory for. */
function guardedEnv(root: string, name: ServiceName): NodeJS.ProcessEnv {
  const library = join(root, KEYGUARD);
  if (!existsSync(library)) return { ...process.env, LAKEBASE_KEYGUARD_EXPECTED: '1' }; // each service says so in its log and at /healthz
  // Small blocks that glibc keeps for their thread are not overwritten when they are freed: it keeps none.
  const tunables = [process.env['GLIBC_TUNABLES'], 'glibc.malloc.tcache_count=0'].filter((t) => t !== undefined).join(':');
  return {
    ...process.env,
    GLIBC_TUNABLES: tunables,
    LD_PRELOAD: library,
    LAKEBASE_KEYGUARD_EXPECTED: '1',
    ...(name === 'compute' || name === 'proxy' ? { LAKEBASE_KEYGUARD_MLOCK: '0' } : {}),
  };
}

/** A young generation of 2 MB keeps an idle process about 10 MB smaller (measured); only the pageserver allocates enough to want V8's own size. V8's
 *  helpers stay as many as it wants: with `--v8-pool-size=1` a data key was still in the pageserver's memory 15 s after a revocation (tests/system/plaintext.test.ts). */
const nodeFlags = (name: ServiceName): readonly string[] => (kindOf(name) === 'pageserver' ? [] : ['--max-semi-space-size=2']);
