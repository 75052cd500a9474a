/** How much disk the WAL of this member may take, and how near it is to that. Below half of it nothing is said; from there `pressure` rises to 1, which
 *  computes turn into a slower writer; at the limit no further segment is begun: streams end with RESOURCE_EXHAUSTED, nothing is acknowledged,
 *  and it goes on by itself once there is room.
 *  Invariant: reaching the limit loses nothing and truncates nothing. */
import { statfs } from 'node:fs/promises';
import { LakebaseError, type Logger, errorMessage } from '@lakebase/base';

export interface DiskBudgetOptions {
  readonly dir: string;
  /** null: what is free on the disk, less a reserve. */
  readonly limitBytes: number | null;
  /** Of all timelines. */
  readonly used: () => number;
  readonly log: Logger;
  /** After every look at the disk. */
  readonly onLook?: () => void;
}

const LOOK_MS = 1_000;
/** Left free for control files and for others on the disk: a twentieth of it, at most 1 GiB, and not more than half of what is free: others who fill
 *  the disk must not shut out a member whose WAL is small. The disk itself says when it is really full. */
const RESERVE_PART = 0.05;
const RESERVE_MAX = 1024 ** 3;
const QUIET = 0.5;
const LOUD = 0.95;

export const pressureOf = (used: number, limit: number): number =>
  limit <= 0 ? 1 : Math.min(1, Math.max(0, (used / limit - QUIET) / (LOUD - QUIET)));

export class DiskBudget {
  readonly #options: DiskBudgetOptions;
  #timer: NodeJS.Timeout | undefined;
  #closed = false;
  #used = 0;
  #limit = Number.POSITIVE_INFINITY;
  #wasFull = false;

  constructor(options: DiskBudgetOptions) {
    this.#options = options;
  }

  /** Resolves after the first look. */
  async start(): Promise<void> {
    await this.look();
    this.#arm();
  }

  #arm(): void {
    if (this.#closed) return;
    this.#timer = setTimeout(() => {
      void this.look().finally(() => this.#arm());
    }, LOOK_MS).unref();
  }

  async look(): Promise<void> {
    const { dir, limitBytes, used, log, onLook } = this.#options;
    try {
      this.#used = used();
      const disk = await statfs(dir);
      const free = disk.bavail * disk.bsize;
      const reserve = Math.min(RESERVE_MAX, disk.blocks * disk.bsize * RESERVE_PART);
      this.#limit = Math.min(limitBytes ?? Number.POSITIVE_INFINITY, this.#used + Math.max(free - reserve, free / 2));
    } catch (error) {
      return log.warn({ dir, err: errorMessage(error) }, 'cannot see how full the disk is');
    }
    if (this.full !== this.#wasFull) {
      this.#wasFull = this.full;
      const facts = { dir, usedBytes: this.#used, limitBytes: this.#limit };
      if (this.full) log.error(facts, 'the disk for WAL is full: this member accepts no more until there is room');
      else log.info(facts, 'there is room for WAL again');
    }
    onLook?.();
  }

  get usedBytes(): number {
    return this.#used;
  }
  get limitBytes(): number {
    return this.#limit;
  }
  /** 0: plenty of room; 1: nearly none. */
  get pressure(): number {
    return pressureOf(this.#used, this.#limit);
  }
  get full(): boolean {
    return this.#used >= this.#limit;
  }

  /** Before a segment file is begun. In the second between two looks several may be. */
  check(): void {
    const { dir, used } = this.#options;
    this.#used = used();
    if (!this.full) return;
    throw new LakebaseError(
      'RESOURCE_EXHAUSTED',
      `WAL in ${dir} takes all the disk it may: the disk is full; free space, writing resumes by itself`,
    );
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
  }
}
