/** Start bundles of timelines that stand still, so that a resume does not wait for a few hundred pages to be read from layers.
 *  Invariant: a bundle is handed out only for the LSN it was built at, while that is still the head, and until a suspend state or boot
 *  set replaces what went into it ({@link BundleCache.forget}). Bounded by bytes; the one unused for longest goes first. */
import type { Lsn } from '@lakebase/ids';

interface Entry {
  readonly lsn: Lsn;
  readonly bytes: Buffer;
}

export class BundleCache {
  readonly #limit: number;
  readonly #entries = new Map<string, Entry>();
  #used = 0;

  constructor(limitBytes: number) {
    this.#limit = limitBytes;
  }

  get(timeline: string, lsn: Lsn): Buffer | undefined {
    const entry = this.#entries.get(timeline);
    if (entry === undefined) return undefined;
    if (entry.lsn !== lsn) {
      // The head has gone on: it never comes back.
      this.forget(timeline);
      return undefined;
    }
    this.#entries.delete(timeline);
    this.#entries.set(timeline, entry);
    return entry.bytes;
  }

  set(timeline: string, lsn: Lsn, bytes: Buffer): void {
    this.forget(timeline);
    if (bytes.length > this.#limit) return;
    this.#entries.set(timeline, { lsn, bytes });
    this.#used += bytes.length;
    for (const old of this.#entries.keys()) {
      if (this.#used <= this.#limit) break;
      this.forget(old);
    }
  }

  /** `wipe`: nobody may be sending it. */
  forget(timeline: string, wipe = false): void {
    const entry = this.#entries.get(timeline);
    if (entry === undefined) return;
    this.#used -= entry.bytes.length;
    this.#entries.delete(timeline);
    if (wipe) entry.bytes.fill(0);
  }
}
