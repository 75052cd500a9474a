/** Unwrapped KEKs, in memory only. Invariants: each is wiped when it is dropped, whatever the reason; none is older than `maxAgeMs` since
 *  the last success of its KMS, on the clock that does not jump. */
import { copySecret, wipe } from '@lakebase/envelope';

interface Entry {
  readonly kek: Buffer;
  freshAt: number;
}

export class KekCache {
  readonly #maxAgeMs: number;
  readonly #monotonic: () => number;
  readonly #byProject = new Map<string, Map<number, Entry>>();

  constructor(maxAgeMs: number, monotonic: () => number) {
    this.#maxAgeMs = maxAgeMs;
    this.#monotonic = monotonic;
  }

  /** Not a copy: good until the next await. */
  get(project: string, version: number): Buffer | undefined {
    const entry = this.#byProject.get(project)?.get(version);
    return entry === undefined || this.#expired(entry) ? undefined : entry.kek;
  }

  /** Takes a copy. */
  put(project: string, version: number, kek: Buffer): void {
    const versions = this.#byProject.get(project) ?? new Map<number, Entry>();
    this.#byProject.set(project, versions);
    wipe(versions.get(version)?.kek);
    versions.set(version, { kek: copySecret(kek), freshAt: this.#monotonic() });
  }

  wipe(project: string): void {
    for (const { kek } of this.#byProject.get(project)?.values() ?? []) wipe(kek);
    this.#byProject.delete(project);
  }
  wipeVersion(project: string, version: number): void {
    const versions = this.#byProject.get(project);
    wipe(versions?.get(version)?.kek);
    versions?.delete(version);
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
