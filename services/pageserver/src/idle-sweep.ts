/** Timelines that nobody uses and that have nothing left to do leave memory: what they hold is written, uploaded and noted, and they are detached.
 *  Invariant: one is detached only when nothing came while that was done; a start leaves it alone until somebody asks. */
import { errorMessage } from '@lakebase/base';
import { detach, writeIdleNote } from './attachment.ts';
import { type Attached, isAttached } from './timeline-entry.ts';
import type { TimelineTable } from './timeline-table.ts';

const SWEEP_MS = 10_000;

export class IdleSweep {
  readonly #table: TimelineTable;
  readonly #detachAfterMs: number;
  #timer: NodeJS.Timeout | undefined;

  constructor(table: TimelineTable) {
    this.#table = table;
    this.#detachAfterMs = table.context.config.detachAfterMs;
  }

  start(): void {
    this.#timer = setInterval(() => this.#sweep(), Math.min(SWEEP_MS, this.#detachAfterMs));
    this.#timer.unref();
  }
  stop(): void {
    clearInterval(this.#timer);
  }

  #sweep(): void {
    const now = performance.now();
    for (const [name, entry] of this.#table.all()) {
      if (!isAttached(entry) || entry.users > 0 || now - entry.lastUsed < this.#detachAfterMs) continue;
      if (!caughtUp(entry)) continue;
      void this.#table
        .queued(name, () => this.#detachIdle(name, entry))
        .catch((error: unknown) => this.#table.context.log.warn({ err: errorMessage(error) }, 'an idle timeline cannot be detached'));
    }
  }

  async #detachIdle(name: string, entry: Attached): Promise<void> {
    const unused = (): boolean =>
      this.#table.get(name) === entry && entry.users === 0 && performance.now() - entry.lastUsed >= this.#detachAfterMs;
    if (this.#table.closed || !unused()) return;
    await entry.timeline.checkpoint();
    await entry.uploader?.flush();
    const { storage } = entry.timeline;
    // Something may have come while that was written.
    if (this.#table.closed || !unused() || !caughtUp(entry) || storage.diskConsistentLsn < entry.timeline.lastRecordLsn) return;
    const kekVersion = Math.min(storage.oldestKekVersion, entry.uploader?.indexKekVersion ?? Number.MAX_SAFE_INTEGER);
    const note = { kekVersion, uploaded: entry.uploader !== undefined };
    this.#table.put(name, { idle: note });
    this.#table.bundles.forget(entry.timeline.id);
    await detach(entry);
    await writeIdleNote(storage.files, note);
  }
}

/** All that its safekeepers have is here. */
const caughtUp = ({ timeline, receiver }: Attached): boolean =>
  timeline.broken === undefined && receiver.connectedTo !== undefined && receiver.senderLsn <= timeline.lastRecordLsn;
