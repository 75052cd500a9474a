/** Unwrapped KEKs, in memory only. Invariants: each is wiped when it is dropped, whatever the reason; none is older than `maxAgeMs` since
 *  the last success of its KMS, on the clock that does not jump. */
import { type KeyObject, createSecretKey } from 'node:crypto';
import { copySecret, wipe } from '@lakebase/envelope';

export interface CachedKek {
  /** Zeros after it was dropped: use it before the next await. */
  readonly bytes: Buffer;
  /** The same key for ciphers. OpenSSL clears it when the garbage collector takes it. */
  readonly key: KeyObject;
}
interface Entry extends CachedKek {
  freshAt: number;
}

export class KekCache {
  readonly #maxAgeMs: number;
  readonly #monotonic: () => number;
  readonly #onWipe: () => void;
  readonly #byProject = new Map<string, Map<number, Entry>>();

  /** `onWipe`: keys were dropped; the garbage collector should run. */
  constructor(maxAgeMs: number, monotonic: () => number, onWipe: () => void = () => {}) {
    this.#maxAgeMs = maxAgeMs;
    this.#monotonic = monotonic;
    this.#onWipe = onWipe;
  }

  get(project: string, version: number): CachedKek | undefined {
    const entry = this.#byProject.get(project)?.get(version);
    return entry === undefined || this.#expired(entry) ? undefined : entry;
  }

  /** Takes a copy. */
  put(project: string, version: number, kek: Buffer): void {
    const versions = this.#byProject.get(project) ?? new Map<number, Entry>();
    this.#byProject.set(project, versions);
    const known = versions.get(version);
    // The usual case, every few seconds: the same key is still good, and no further copy of it is made.
    if (known?.bytes.equals(kek) === true) known.freshAt = this.#monotonic();
    else {
      wipe(known?.bytes);
      versions.set(version, { bytes: copySecret(kek), key: createSecretKey(kek), freshAt: this.#monotonic() });
    }
  }

  wipe(project: string): void {
    for (const { bytes } of this.#byProject.get(project)?.values() ?? []) wipe(bytes);
    if (this.#byProject.delete(project)) this.#onWipe();
  }
  wipeVersion(project: string, version: number): void {
    const versions = this.#byProject.get(project);
    wipe(versions?.get(version)?.bytes);
    if (versions?.delete(version) === true) this.#onWipe();
  }
  wipeAll(): void {
    for (const project of [...this.#byProject.keys()]) this.wipe(project);
  }

  /** Wipes what is too old. */
  expire(): void {
    for (const [project, versions] of this.#byProject)
      for (const [version, entry] of versions) if (this.#expired(entry)) this.wipeVersion(project, version);
  }

  get size(): number {
    return [...this.#byProject.values()].reduce((n, versions) => n + versions.size, 0);
  }
  /** Seconds since the KMS last opened the one that waited longest; 0 without any. */
  get oldestSeconds(): number {
    const ages = [...this.#byProject.values()].flatMap((v) => [...v.values()].map((e) => this.#monotonic() - e.freshAt));
    return Math.max(0, ...ages) / 1_000;
  }

  #expired(entry: Entry): boolean {
    return this.#monotonic() - entry.freshAt > this.#maxAgeMs;
  }
}
