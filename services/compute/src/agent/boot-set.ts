/** Remembers the blocks a start touched first. The pageserver sends them along with the next start bundle, so that a resume does not pay
 *  one fault after another. Bounded; order of first touch is kept, blocks of the previous set first. */
import { BOOT_SET_MAX, type BlockRef } from '@lakebase/api';
import type { RelTag } from '@lakebase/ids';

/** Faults later than this after the start belong to the workload, not to starting. */
const WINDOW_MS = 1_500;
/** A run longer than this is a scan. */
const RUN_MAX = 8;
const BLOCKS_MAX = 256;

export class BootSet {
  readonly #blocks = new Map<string, BlockRef>();
  readonly #before: number;
  readonly #until: number;

  constructor(previous: readonly BlockRef[], now: number) {
    for (const block of previous.slice(0, BOOT_SET_MAX))
      this.#blocks.set(key(block.tag, block.block), { tag: block.tag, block: block.block });
    this.#before = this.#blocks.size;
    this.#until = now + WINDOW_MS;
  }

  record(tag: RelTag, block: number, count: number, now: number): void {
    if (now > this.#until || count > RUN_MAX) return;
    for (let i = 0; i < count && this.#blocks.size < BLOCKS_MAX; i++) this.#blocks.set(key(tag, block + i), { tag, block: block + i });
  }

  get grown(): boolean {
    return this.#blocks.size > this.#before;
  }
  blocks(): BlockRef[] {
    return [...this.#blocks.values()];
  }
}

const key = (tag: RelTag, block: number): string => `${tag.spc}/${tag.db}/${tag.rel}/${tag.fork}/${block}`;
