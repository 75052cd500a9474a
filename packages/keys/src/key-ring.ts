/** All data keys of one storage process: one {@link ProjectKeys} per project, locked and unlocked by the key manager's watch.
 *  Invariant: when a listener of `onChange` runs for a lock, the project's keys are already zeros. */
import type { KeyManagerClient } from '@lakebase/api';
import { LakebaseError, type Logger, errorMessage } from '@lakebase/base';
import { parseProjectUid } from '@lakebase/ids';
import { KeyWatch, type WatchState, lockReason } from './key-watch.ts';
import { type ProjectKeys, ProjectKeyStore } from './project-keys.ts';

const POOL = 16;
/** Unwrapped keys cached per project, 300 bytes or so each with its reference: as many as layers are attached, whose descriptors take more. Reads
 *  cannot wait for a key, so this is a limit against runaway only; a hundred terabytes of layers are below it. */
const CACHE = 1_048_576;

export type KeyListener = (project: string, usable: boolean, reason: string) => void;

/** Where services get keys from: {@link KeyRing}, or LocalKeys in tests. */
export interface KeySource {
  project(project: string): ProjectKeys;
  onChange(listener: KeyListener): void;
  /** The KEK version of a usable project is above the last one told, 1 at first: references may be re-wrapped. */
  onRotation(listener: (project: string, kekVersion: number) => void): void;
  /** Objects of a usable project whose DEK was made under a KEK version below `below` are to be rewritten; told once for each request, and after a start. */
  onReEncryption(listener: (project: string, below: number) => void): void;
  start(): Promise<void>;
  stop(): Promise<void>;
}

export interface KeyRingOptions {
  readonly client: KeyManagerClient;
  readonly log: Logger;
  readonly leaseMs?: number;
  readonly poolSize?: number;
  readonly cacheSize?: number;
}

export class KeyRing implements KeySource {
  readonly #o: KeyRingOptions;
  readonly #watch: KeyWatch;
  readonly #projects = new Map<string, ProjectKeyStore>();
  readonly #listeners: KeyListener[] = [];
  readonly #rotations: ((project: string, kekVersion: number) => void)[] = [];
  readonly #reEncryptions: ((project: string, below: number) => void)[] = [];
  readonly #reEncryptBelow = new Map<string, number>();
  /** What listeners were told last. */
  readonly #told = new Map<string, boolean>();
  /** The newest KEK version listeners were told of. */
  readonly #versions = new Map<string, number>();

  constructor(options: KeyRingOptions) {
    this.#o = options;
    this.#watch = new KeyWatch({
      client: options.client,
      log: options.log,
      listener: (project, state) => this.#changed(project, state),
      ...(options.leaseMs === undefined ? {} : { leaseMs: options.leaseMs }),
    });
  }

  start(): Promise<void> {
    return this.#watch.start();
  }

  /** Wipes everything. */
  async stop(): Promise<void> {
    await this.#watch.stop();
    for (const keys of this.#projects.values()) keys.lock(new LakebaseError('CLOSED', 'the process is stopping'));
  }

  onChange(listener: KeyListener): void {
    this.#listeners.push(listener);
  }
  onRotation(listener: (project: string, kekVersion: number) => void): void {
    this.#rotations.push(listener);
  }

  onReEncryption(listener: (project: string, below: number) => void): void {
    this.#reEncryptions.push(listener);
  }

  project(uid: string): ProjectKeyStore {
    let keys = this.#projects.get(uid);
    if (keys === undefined) {
      const project = parseProjectUid(uid);
      const { client, log } = this.#o;
      const state = this.#watch.state(uid);
      keys = new ProjectKeyStore({
        project,
        log,
        backend: {
          deks: (count) => client.deks(project, count),
          unwrap: (references) => client.unwrap(project, references),
          rewrap: (references) => client.rewrap(project, references),
        },
        poolSize: this.#o.poolSize ?? POOL,
        cacheSize: this.#o.cacheSize ?? CACHE,
        locked: lockReason(uid, state),
      });
      if (state.known !== undefined) keys.setKekVersion(state.known.kekVersion);
      this.#projects.set(uid, keys);
    }
    return keys;
  }

  #changed(project: string, state: WatchState): void {
    const reason = lockReason(project, state);
    const keys = this.#projects.get(project);
    if (reason !== undefined) keys?.lock(reason);
    else {
      keys?.setKekVersion(state.known?.kekVersion ?? 0);
      keys?.unlock();
    }
    if (this.#told.get(project) !== (reason === undefined)) {
      this.#told.set(project, reason === undefined);
      for (const listener of this.#listeners) this.#call(() => listener(project, reason === undefined, reason?.message ?? ''));
    }
    const now = state.known?.kekVersion ?? 0;
    // Also of projects that nothing was asked about here, and after a restart: who holds none of their references says so too.
    const before = this.#versions.get(project) ?? 1;
    if (reason !== undefined) return;
    if (now > before) {
      this.#versions.set(project, now);
      for (const listener of this.#rotations) this.#call(() => listener(project, now));
    }
    const below = state.known?.reEncryptBelow ?? 0;
    if (below <= (this.#reEncryptBelow.get(project) ?? 0)) return;
    this.#reEncryptBelow.set(project, below);
    for (const listener of this.#reEncryptions) this.#call(() => listener(project, below));
  }

  #call(listener: () => void): void {
    try {
      listener();
    } catch (error) {
      this.#o.log.error({ err: errorMessage(error) }, 'a listener for key changes failed');
    }
  }
}
