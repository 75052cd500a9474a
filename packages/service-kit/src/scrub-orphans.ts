/** Since when an object has been seen without anything that names it. A store's clock is not ours and not every store tells times: an orphan is old when
 *  a scrub saw it so long ago and every scrub since. Kept in a small file beside the data; losing it only puts deletions off. */
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import type { Logger } from '@lakebase/base';
import { errorMessage } from '@lakebase/base';

const KEYS_MAX = 100_000;

export class OrphanMemory {
  readonly #path: string;
  readonly #log: Logger;
  readonly #now: () => number;
  readonly #since: Map<string, number>;

  constructor(path: string, log: Logger, now: () => number = Date.now) {
    this.#path = path;
    this.#log = log;
    this.#now = now;
    this.#since = new Map(read(path));
  }

  /** Those of `keys` (all orphans below `prefix` now) that have been orphans for `ageMs`. */
  seen(prefix: string, keys: readonly string[], ageMs: number): string[] {
    const now = this.#now();
    const current = new Set(keys);
    for (const key of this.#since.keys()) if (key.startsWith(prefix) && !current.has(key)) this.#since.delete(key);
    for (const key of keys) {
      const since = this.#since.get(key);
      // A time to come is one of a clock that was set back since.
      if ((since === undefined || since > now) && this.#since.size < KEYS_MAX) this.#since.set(key, now);
    }
    return keys.filter((key) => now - (this.#since.get(key) ?? now) >= ageMs);
  }

  save(): void {
    try {
      writeFileSync(`${this.#path}.tmp`, JSON.stringify([...this.#since]));
      renameSync(`${this.#path}.tmp`, this.#path);
    } catch (error) {
      this.#log.warn({ err: errorMessage(error) }, 'cannot remember the orphans that were seen; they are deleted later');
    }
  }
}

function read(path: string): [string, number][] {
  try {
    const rows = JSON.parse(readFileSync(path, 'utf8')) as unknown;
    if (!Array.isArray(rows)) return [];
    return rows.filter((r): r is [string, number] => Array.isArray(r) && typeof r[0] === 'string' && Number.isSafeInteger(r[1]));
  } catch {
    return [];
  }
}
