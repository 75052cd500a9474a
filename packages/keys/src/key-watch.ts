/** The key manager's watch, kept open: what state each project's key is in, and whether what we know is fresh.
 *  Invariants
 *  - `listener` hears of every change, in order, and of a lost lease for every project; it is told about a lock before anybody can use a
 *    key again.
 *  - Without a line for `leaseMs` every project is locked ({@link WatchState.fresh} false), so a service cut off from the key manager
 *    outlives a revocation by no more than the lease. A stalled process locks when it wakes: its timer is due before its sockets are read. */
import { type KeyManagerClient, type WatchLine, type WatchedProject, keyUsable } from '@lakebase/api';
import { LakebaseError, type Logger, backoffDelay, errorMessage, sleep } from '@lakebase/base';

const LEASE_MS = 8_000;
const RECONNECT = { baseMs: 50, maxMs: 1_000 };

export interface WatchState {
  /** undefined: the key manager has no key for this project. */
  readonly known: WatchedProject | undefined;
  /** The lease is held. */
  readonly fresh: boolean;
}

export interface KeyWatchOptions {
  readonly client: Pick<KeyManagerClient, 'watch'>;
  readonly log: Logger;
  /** Default: what the key manager says (8 s). */
  readonly leaseMs?: number;
  /** Called after the state of `project` or the lease changed. */
  readonly listener: (project: string, state: WatchState) => void;
}

export class KeyWatch {
  readonly #o: KeyWatchOptions;
  readonly #stop = new AbortController();
  readonly #projects = new Map<string, WatchedProject>();
  #fresh = false;
  #leaseMs: number;
  #lease: NodeJS.Timeout | undefined;
  #loop: Promise<void> = Promise.resolve();
  #first = Promise.withResolvers<void>();

  constructor(options: KeyWatchOptions) {
    this.#o = options;
    this.#leaseMs = options.leaseMs ?? LEASE_MS;
  }

  /** Resolves after the first snapshot; retries for ever. */
  start(): Promise<void> {
    this.#loop = this.#run();
    return this.#first.promise;
  }

  async stop(): Promise<void> {
    this.#stop.abort(new LakebaseError('CLOSED', 'stopped'));
    clearTimeout(this.#lease);
    this.#first.promise.catch(() => {});
    this.#first.reject(new LakebaseError('CLOSED', 'stopped'));
    await this.#loop;
  }

  get fresh(): boolean {
    return this.#fresh;
  }
  state(project: string): WatchState {
    return { known: this.#projects.get(project), fresh: this.#fresh };
  }
  projects(): readonly WatchedProject[] {
    return [...this.#projects.values()];
  }

  async #run(): Promise<void> {
    for (let attempt = 0; !this.#stop.signal.aborted; ) {
      const connection = new AbortController();
      try {
        for await (const line of this.#o.client.watch(AbortSignal.any([this.#stop.signal, connection.signal]))) {
          attempt = 0;
          this.#take(line, connection);
        }
      } catch (error) {
        if (!this.#stop.signal.aborted && attempt === 0)
          this.#o.log.warn({ err: errorMessage(error) }, 'lost the watch of the key manager; connecting again');
      }
      await sleep(backoffDelay(attempt++, RECONNECT), this.#stop.signal).catch(() => {});
    }
  }

  #take(line: WatchLine, connection: AbortController): void {
    clearTimeout(this.#lease);
    if (line.kind === 'snapshot') {
      this.#leaseMs = this.#o.leaseMs ?? line.leaseSeconds * 1_000;
      this.#snapshot(line.projects);
      this.#first.resolve();
    } else if (line.kind === 'change') {
      const { kind: _, ...project } = line;
      this.#set(project);
    } else if (!this.#fresh) {
      connection.abort(); // the lease went by while this connection was silent: only a snapshot says how things stand
      return;
    }
    this.#lease = setTimeout(() => this.#lost(), this.#leaseMs).unref();
  }

  #snapshot(projects: readonly WatchedProject[]): void {
    const before = new Map(this.#projects);
    const renewed = !this.#fresh;
    this.#projects.clear();
    for (const project of projects) this.#projects.set(project.project, project);
    this.#fresh = true;
    for (const uid of new Set([...before.keys(), ...this.#projects.keys()])) {
      const now = this.#projects.get(uid);
      if (renewed || !same(before.get(uid), now)) this.#o.listener(uid, this.state(uid));
    }
  }

  #set(project: WatchedProject): void {
    this.#projects.set(project.project, project);
    this.#o.listener(project.project, this.state(project.project));
  }

  #lost(): void {
    if (!this.#fresh) return;
    this.#fresh = false;
    this.#o.log.error({ leaseMs: this.#leaseMs }, 'no word from the key manager: every project is locked until it is back');
    for (const uid of this.#projects.keys()) this.#o.listener(uid, this.state(uid));
  }
}

const same = (a: WatchedProject | undefined, b: WatchedProject | undefined): boolean =>
  a?.state === b?.state && a?.reason === b?.reason && a?.kekVersion === b?.kekVersion && a?.reEncryptBelow === b?.reEncryptBelow;

/** Why a project's keys may not be used now; undefined when they may. */
export function lockReason(project: string, { known, fresh }: WatchState): LakebaseError | undefined {
  if (!fresh)
    return new LakebaseError('UNAVAILABLE', 'the key manager does not answer, so no key may be used; this ends by itself when it is back');
  if (known === undefined) return new LakebaseError('UNAVAILABLE', `the key manager has no key for project ${project} (yet)`);
  if (keyUsable(known.state)) return undefined;
  const what = {
    SUSPENDED: 'the key management service of this project has been unreachable for longer than its grace',
    REVOKED: 'the customer-managed key of this project may not be used',
    SHREDDED: "this project's keys were destroyed; its data cannot be read again",
  }[known.state as 'SUSPENDED' | 'REVOKED' | 'SHREDDED'];
  return new LakebaseError('KEY_REVOKED', `${what}: ${known.reason}`);
}
