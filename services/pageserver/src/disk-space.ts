/** Watches the free space of the data directory. Below twice the reserve what is in the object store too is dropped; below the reserve ingest
 *  waits, while reads go on; it goes on by itself when there is room again. */
import { statfs } from 'node:fs/promises';
import { type Logger, errorMessage } from '@lakebase/base';

export interface DiskSpaceOptions {
  readonly path: string;
  readonly reserveBytes: number;
  readonly everyMs?: number;
  /** Drops local bytes that are not needed; resolves with how many. */
  readonly makeRoom: (bytes: number) => Promise<number>;
  readonly log: Logger;
}

export class DiskSpace {
  readonly #o: DiskSpaceOptions;
  #timer: NodeJS.Timeout | undefined;
  #low: PromiseWithResolvers<void> | undefined;
  #checking = false;
  free = Number.POSITIVE_INFINITY;
  /** Of the whole disk; undefined until it was looked at. */
  capacityBytes: number | undefined;

  constructor(options: DiskSpaceOptions) {
    this.#o = options;
  }

  start(): void {
    this.#timer = setInterval(() => void this.check(), this.#o.everyMs ?? 1_000);
    this.#timer.unref();
  }
  stop(): void {
    clearInterval(this.#timer);
    this.#low?.resolve();
    this.#low = undefined;
  }

  /** Undefined while there is room; otherwise resolves when there is. */
  get room(): Promise<void> | undefined {
    return this.#low?.promise;
  }

  async check(): Promise<void> {
    if (this.#checking) return;
    this.#checking = true;
    try {
      const { reserveBytes, makeRoom, log } = this.#o;
      await this.#look();
      if (this.free < reserveBytes * 2 && (await makeRoom(reserveBytes * 2 - this.free)) > 0) await this.#look();
      const low = this.free < reserveBytes;
      if (low && this.#low === undefined) {
        this.#low = Promise.withResolvers<void>();
        log.error({ freeBytes: this.free, reserveBytes }, 'the disk is nearly full: no WAL is ingested until there is room; reads go on');
      } else if (!low && this.#low !== undefined) {
        this.#low.resolve();
        this.#low = undefined;
        log.info({ freeBytes: this.free }, 'there is room on the disk again');
      }
    } catch (error) {
      this.#o.log.warn({ err: errorMessage(error) }, 'cannot see how full the disk is');
    } finally {
      this.#checking = false;
    }
  }

  async #look(): Promise<void> {
    const { bavail, blocks, bsize } = await statfs(this.#o.path);
    this.free = bavail * bsize;
    this.capacityBytes = blocks * bsize;
  }
}
