/** One change filed under (key, LSN). The LSN is the end of the WAL record that made it (what redo stores in pd_lsn).
 *  Several entries of one key may share an LSN; their order is the order of filing. */
import type { Lsn } from '@lakebase/ids';

/** A WAL record; the low bits of `arg` are the block id that names this page. */
export const ENTRY_RECORD = 1;
/** A side delta of pg-redo: a change no block reference names. */
export const ENTRY_DELTA = 2;
/** A whole 8 KiB page. */
export const ENTRY_IMAGE = 3;
/** The page became all zeros. */
export const ENTRY_ZERO = 4;
/** A small value; empty means: gone. */
export const ENTRY_VALUE = 5;
/** On an FSM page: heap block u32le whose free space may have been recorded by redo. */
export const ENTRY_FSM_HINT = 6;

/** Set in `arg` when nothing older is needed: images, zero pages, values, records that initialise their page. */
export const ARG_STOP = 0x80;
export const ARG_BLOCK_ID = 0x3f;

export interface Entry {
  readonly kind: number;
  readonly arg: number;
  readonly lsn: Lsn;
  /** A view of the layer's memory: valid while the layer is. */
  readonly bytes: Buffer;
}

/** Anything that can be searched for the changes of one key. */
export interface LayerView {
  /** Every entry has startLsn < lsn <= endLsn, but for the images of a clean suspend, which may sit at startLsn. */
  readonly startLsn: Lsn;
  readonly endLsn: Lsn;
  /** Appends entries with floor < lsn <= upTo, newest first, down to the first stop entry; true when that was reached. */
  collect(key: Buffer, upTo: Lsn, floor: Lsn, out: Entry[]): boolean;
}
