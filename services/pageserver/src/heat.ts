/** What has been read of a timeline lately, as runs of blocks, so that the next pageserver to attach it can fetch them before they are asked for.
 *  Runs, not files: merges replace files. Invariant: bounded; two generations of sets stand in for a clock, and noting costs a set insertion at most. */
import { ByteReader, ByteWriter, DecodeError } from '@lakebase/bytes';
import { LakebaseError } from '@lakebase/base';
import type { SeriesTable, SeriesId } from '@lakebase/layers';

export const HEAT_OBJECT_MAGIC = 0x4c424854;
/** Blocks per run: a megabyte of pages. */
export const HEAT_BLOCKS = 128;
const RUNS_MAX = 16_384;
const VERSION = 1;
const RUN_BYTES = 18;

export interface HeatRun extends SeriesId {
  /** First block, a multiple of {@link HEAT_BLOCKS}. */
  readonly block: number;
}

const SPAN = 0x200_0000;

export class HeatMap {
  #new = new Set<number>();
  #old: ReadonlySet<number> = new Set();
  #last = -1;
  /** Grows with every run that was not known. */
  changes = 0;

  note(series: number, block: number): void {
    const run = series * SPAN + Math.floor(block / HEAT_BLOCKS);
    if (run === this.#last) return;
    this.#last = run;
    if (this.#new.has(run)) return;
    if (!this.#old.has(run)) this.changes++;
    this.#new.add(run);
    if (this.#new.size < RUNS_MAX / 2) return;
    this.#old = this.#new;
    this.#new = new Set();
  }

  get size(): number {
    return this.#new.size + this.#old.size;
  }

  clear(): void {
    this.#new = new Set();
    this.#old = new Set();
    this.#last = -1;
  }

  /** Hot first. */
  runs(series: SeriesTable): HeatRun[] {
    const ids = [...this.#new].reverse();
    for (const id of [...this.#old].reverse()) if (!this.#new.has(id)) ids.push(id);
    return ids.slice(0, RUNS_MAX).map((id) => ({ ...series.get(Math.floor(id / SPAN)), block: (id % SPAN) * HEAT_BLOCKS }));
  }
}

/** `version u8 · runs u32 · (kind u8 · spc u32 · db u32 · rel u32 · fork u8 · block u32)…`, hot first. */
export function encodeHeat(runs: readonly HeatRun[]): Buffer {
  const w = new ByteWriter(8 + runs.length * RUN_BYTES).u8(VERSION).u32be(runs.length);
  for (const r of runs) w.u8(r.kind).u32be(r.spc).u32be(r.db).u32be(r.rel).u8(r.fork).u32be(r.block);
  return w.finish();
}

export function decodeHeat(bytes: Buffer): HeatRun[] {
  try {
    const r = new ByteReader(bytes);
    if (r.u8() !== VERSION) return [];
    const count = r.u32be();
    if (count > RUNS_MAX) throw new LakebaseError('CORRUPT', `a heat map of ${count} runs`);
    const runs: HeatRun[] = [];
    for (let i = 0; i < count; i++)
      runs.push({ kind: r.u8(), spc: r.u32be(), db: r.u32be(), rel: r.u32be(), fork: r.u8(), block: r.u32be() });
    return runs;
  } catch (error) {
    if (error instanceof DecodeError) throw new LakebaseError('CORRUPT', 'a heat map is malformed', { cause: error });
    throw error;
  }
}
