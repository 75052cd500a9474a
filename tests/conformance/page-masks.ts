/** What may legally differ between a compute's live page and storage's, beyond the masks of the redo oracle: state that Postgres keeps in pages
 *  without WAL. Both sides are masked alike. */
import {
  initPage,
  isNewPage,
  RM_BRIN_ID,
  RM_BTREE_ID,
  RM_GENERIC_ID,
  RM_GIN_ID,
  RM_GIST_ID,
  RM_HASH_ID,
  RM_HEAP_ID,
  RM_SEQ_ID,
  RM_SPGIST_ID,
} from '@lakebase/pg-format';
import { isMaskedWhole, maskLsnAndChecksum, maskPage } from '../oracle/mask.ts';

/** Resource manager whose mask fits, by the access method's handler function. */
const BY_HANDLER: Readonly<Record<string, number>> = {
  heap_tableam_handler: RM_HEAP_ID,
  bthandler: RM_BTREE_ID,
  hashhandler: RM_HASH_ID,
  gisthandler: RM_GIST_ID,
  ginhandler: RM_GIN_ID,
  spghandler: RM_SPGIST_ID,
  brinhandler: RM_BRIN_ID,
};

export function resourceManagerOf(relkind: string, handler: string | null): number {
  if (relkind === 'S') return RM_SEQ_ID;
  if (handler === null) return RM_HEAP_ID;
  return BY_HANDLER[handler] ?? RM_GENERIC_ID;
}

/** A page nothing is on: zeros, or initialised in place before its first (logged) change. Neither is in WAL. */
export function isEmptyPage(page: Buffer): boolean {
  if (isNewPage(page)) return true;
  const lsnIsZero = page.readUInt32LE(0) === 0 && page.readUInt32LE(4) === 0;
  return lsnIsZero && page.readUInt16LE(12) === 24;
}

export function maskMain(rmid: number, page: Buffer, block: number): void {
  if (isNewPage(page)) return;
  if (rmid !== RM_HEAP_ID && isMaskedWhole(rmid, page)) {
    page.fill(0);
    return;
  }
  maskPage(rmid, page, block);
  // SpGistUpdateMetaPage writes the cache of pages with room without WAL: eight (block, free space) pairs.
  if (rmid === RM_SPGIST_ID && block === 0) page.fill(0, 28, 28 + 64);
  // WAL has a sequence's value up to 32 fetches ahead: the tuple is compared by sequence-value.
  if (rmid === RM_SEQ_ID) maskSequenceTuple(page);
}

/** Visibility map pages are initialised when first read. */
export function maskVisibilityMap(page: Buffer): void {
  if (isNewPage(page)) initPage(page, 0);
  maskLsnAndChecksum(page);
}

const sequenceTupleAt = (page: Buffer): number => (page.readUInt32LE(24) & 0x7fff) + page.readUInt8((page.readUInt32LE(24) & 0x7fff) + 22);

function maskSequenceTuple(page: Buffer): void {
  const at = sequenceTupleAt(page);
  page.fill(0, at, at + 17);
}

export interface SequenceValue {
  readonly last: bigint;
  readonly logged: bigint;
  readonly called: boolean;
}

export function sequenceValue(page: Buffer): SequenceValue {
  const at = sequenceTupleAt(page);
  return { last: page.readBigInt64LE(at), logged: page.readBigInt64LE(at + 8), called: page.readUInt8(at + 16) !== 0 };
}

/** Storage must stand where the values already covered by WAL end, or, after a clean suspend, exactly where the compute does. */
export function sequenceAgrees(compute: SequenceValue, storage: SequenceValue, increment: bigint): boolean {
  if (storage.last === compute.last && storage.logged === compute.logged && storage.called === compute.called) return true;
  const calledAgrees = storage.called === compute.called || compute.logged > 0n;
  return compute.last + compute.logged * increment === storage.last && storage.logged === 0n && calledAgrees;
}

/** A free space map page whose inner nodes are the maximum of their children, and whose header is a page's. FSM is not in WAL: storage's own may
 *  lag behind the compute's, but must be one that Postgres can use. */
export function isSoundFsmPage(page: Buffer): boolean {
  if (isNewPage(page)) return true;
  const NODES = 28; // page header, fp_next_slot
  const inner = 4095;
  const nodes = 8192 - NODES;
  for (let node = inner - 1; node >= 0; node--) {
    const [left, right] = [2 * node + 1, 2 * node + 2];
    const a = left < nodes ? (page[NODES + left] as number) : 0;
    const b = right < nodes ? (page[NODES + right] as number) : 0;
    if (page[NODES + node] !== Math.max(a, b)) return false;
  }
  return true;
}
