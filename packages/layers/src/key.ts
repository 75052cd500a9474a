/** The key space: every piece of storage state has one fixed-size key, compared as bytes.
 *
 *  Layout, 20 bytes, big-endian: `kind u8 · spc u32 · db u32 · rel u32 · fork u8 · block u32 · u16 0`. Kinds are ordered so that the small
 *  values (sizes, maps, counters…) come first in one range, then SLRU pages, then relation pages; within a kind a relation's forks and
 *  blocks are one range. Invariant: no value grows with the number of relations (one key per fork, per database, per segment). */
import { asBuffer } from '@lakebase/bytes';
import type { RelTag } from '@lakebase/ids';

export const KEY_BYTES = 20;

/** The CheckPoint struct, counters current. */
export const KIND_CHECKPOINT = 0x10;
/** pg_control as of the template, with parameter changes. */
export const KIND_CONTROL = 0x11;
/** Database directory (spc, db): `u8 1` exists, empty: dropped. */
export const KIND_DATABASE = 0x12;
/** pg_filenode.map of (spc, db). */
export const KIND_RELMAP = 0x13;
/** Two-phase state; rel and block are the halves of the full xid. Empty: finished. */
export const KIND_TWOPHASE = 0x14;
/** Replication origin `block`: remote LSN u64. Empty: dropped. */
export const KIND_ORIGIN = 0x15;
/** SLRU segment `block` of SLRU kind `rel`: number of pages u32. Empty: removed. */
export const KIND_SLRU_SEGMENT = 0x16;
/** Relation fork: blocks u32. Empty: does not exist. */
export const KIND_REL_SIZE = 0x20;
/** Relation fork: truncation floors, see {@link file://./floors.ts}. */
export const KIND_REL_FLOORS = 0x21;
/** SLRU page `block` of SLRU kind `rel`. */
export const KIND_SLRU_PAGE = 0x40;
/** A block of a relation fork. */
export const KIND_REL_PAGE = 0x50;
/** Kinds below this hold small values; from here on, 8 KiB pages. */
export const FIRST_PAGE_KIND = 0x40;

/** All of a key but the block: what a run of pages shares. */
export interface SeriesId {
  readonly kind: number;
  readonly spc: number;
  readonly db: number;
  readonly rel: number;
  readonly fork: number;
}
export interface Key extends SeriesId {
  readonly block: number;
}

export function writeKey(into: Buffer, at: number, s: SeriesId, block: number): void {
  into[at] = s.kind;
  into.writeUInt32BE(s.spc >>> 0, at + 1);
  into.writeUInt32BE(s.db >>> 0, at + 5);
  into.writeUInt32BE(s.rel >>> 0, at + 9);
  into[at + 13] = s.fork;
  into.writeUInt32BE(block >>> 0, at + 14);
  into[at + 18] = 0;
  into[at + 19] = 0;
}

export function encodeKey(s: SeriesId, block: number): Buffer {
  const key = Buffer.allocUnsafe(KEY_BYTES);
  writeKey(key, 0, s, block);
  return key;
}

export function decodeKey(bytes: Uint8Array, at = 0): Key {
  const b = asBuffer(bytes);
  return {
    kind: b.readUInt8(at),
    spc: b.readUInt32BE(at + 1),
    db: b.readUInt32BE(at + 5),
    rel: b.readUInt32BE(at + 9),
    fork: b.readUInt8(at + 13),
    block: b.readUInt32BE(at + 14),
  };
}

export const relPages = (tag: RelTag): SeriesId => ({ kind: KIND_REL_PAGE, spc: tag.spc, db: tag.db, rel: tag.rel, fork: tag.fork });
export const metaSeries = (kind: number, spc = 0, db = 0, rel = 0, fork = 0): SeriesId => ({ kind, spc, db, rel, fork });
export const sameFork = (kind: number, s: SeriesId): SeriesId => ({ kind, spc: s.spc, db: s.db, rel: s.rel, fork: s.fork });

export const KEY_MIN: Buffer = Buffer.alloc(KEY_BYTES, 0x00);
export const KEY_MAX: Buffer = Buffer.alloc(KEY_BYTES, 0xff);
