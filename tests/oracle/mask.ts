/** Masking before two pages are compared: what may legally differ between the page a primary logged and the page redo makes
 *  (bufmask.c and each resource manager's mask function). Works in place on copies.
 *  Invariant: both sides are masked alike, so a mask may only hide, never produce, a difference. */
import {
  RM_BRIN_ID,
  RM_BTREE_ID,
  RM_GENERIC_ID,
  RM_GIN_ID,
  RM_GIST_ID,
  RM_HASH_ID,
  RM_HEAP2_ID,
  RM_HEAP_ID,
  RM_SEQ_ID,
  RM_SPGIST_ID,
} from '@lakebase/pg-format';

// Bits of htup_details.h and nbtree.h, written here once more on purpose: the oracle must not share a mistake with redo.
const LP_NORMAL = 1;
const XMIN_FROZEN = 0x0300;
const XACT_MASK = 0xfff0;
const XMAX_HINTS = 0x0c00; // HEAP_XMAX_INVALID | HEAP_XMAX_COMMITTED
const SPECULATIVE_TOKEN = 0xfffe;
const BTP_LEAF = 0x0001;
const BTP_SPLIT_END = 0x0020;
const BTP_HAS_GARBAGE = 0x0040;
const HASH_PAGE_TYPES = 0x000f;
const HASH_BUCKET_OR_OVERFLOW = 0x0003;
const HASH_HAS_DEAD_TUPLES = 0x0080;
const GIN_DELETED = 0x0004;
const GIST_LEAF = 0x0001;
const GIST_FOLLOW_RIGHT = 0x0008;
const GIST_HAS_GARBAGE = 0x0010;
const BRIN_META = 0xf091;
const BRIN_REGULAR = 0xf093;
const BRIN_EVACUATE = 0x0001;

export function maskPage(rmid: number, page: Buffer, block: number): void {
  switch (rmid) {
    case RM_HEAP_ID:
    case RM_HEAP2_ID:
      maskHeap(page, block);
      break;
    case RM_BTREE_ID:
      maskBtree(page);
      break;
    case RM_HASH_ID:
      maskHash(page);
      break;
    case RM_GIN_ID:
      maskGin(page);
      break;
    case RM_GIST_ID:
      maskGist(page);
      break;
    case RM_SPGIST_ID:
      maskLsnAndChecksum(page);
      maskHintBits(page);
      if (page.readUInt16LE(12) >= 24) maskUnusedSpace(page);
      break;
    case RM_BRIN_ID:
      maskBrin(page);
      break;
    case RM_SEQ_ID:
    case RM_GENERIC_ID:
      maskLsnAndChecksum(page);
      maskUnusedSpace(page);
      break;
    default:
      break; // no mask function: compared as it is
  }
}

/** Nothing but header fields of such a page is compared. */
export function isMaskedWhole(rmid: number, page: Buffer): boolean {
  const flags = page.readUInt16LE(8190);
  return (rmid === RM_GIN_ID && (flags & GIN_DELETED) !== 0) || (rmid === RM_HASH_ID && (page.readUInt16LE(8188) & HASH_PAGE_TYPES) === 0);
}

export function maskLsnAndChecksum(page: Buffer): void {
  page.fill(0, 0, 10);
}

export function maskHintBits(page: Buffer): void {
  page.writeUInt32LE(0, 20);
  page.writeUInt16LE(page.readUInt16LE(10) & ~7, 10);
}

export function maskUnusedSpace(page: Buffer): void {
  const lower = page.readUInt16LE(12);
  const upper = page.readUInt16LE(14);
  const special = page.readUInt16LE(16);
  if (lower > upper || special < upper || lower < 24 || special > 8192)
    throw new Error(`invalid page: lower ${lower} upper ${upper} special ${special}`);
  page.fill(0, lower, upper);
}

function maskHeap(page: Buffer, block: number): void {
  maskLsnAndChecksum(page);
  maskHintBits(page);
  maskUnusedSpace(page);
  const lines = Math.floor((page.readUInt16LE(12) - 24) / 4);
  for (let i = 0; i < lines; i++) {
    const id = page.readUInt32LE(24 + i * 4);
    const at = id & 0x7fff;
    const length = id >>> 17;
    if (((id >>> 15) & 3) === LP_NORMAL) {
      let mask = page.readUInt16LE(at + 20);
      if ((mask & XMIN_FROZEN) !== XMIN_FROZEN) mask &= ~XACT_MASK;
      else mask &= ~XMAX_HINTS;
      page.writeUInt16LE(mask, at + 20);
      page.writeUInt32LE(0, at + 8);
      // A speculative tuple has a token where redo puts its own position.
      if (page.readUInt16LE(at + 16) === SPECULATIVE_TOKEN) {
        page.writeUInt16LE(block >>> 16, at + 12);
        page.writeUInt16LE(block & 0xffff, at + 14);
        page.writeUInt16LE(i + 1, at + 16);
      }
    }
    if (length !== 0) page.fill(0, Math.min(at + length, 8192), Math.min(at + ((length + 7) & ~7), 8192));
  }
}

function maskBtree(page: Buffer): void {
  maskLsnAndChecksum(page);
  maskHintBits(page);
  maskUnusedSpace(page);
  const opaque = page.readUInt16LE(16);
  const flags = page.readUInt16LE(opaque + 12);
  if ((flags & BTP_LEAF) !== 0) maskItemFlags(page);
  page.writeUInt16LE(flags & ~(BTP_HAS_GARBAGE | BTP_SPLIT_END), opaque + 12);
  page.writeUInt16LE(0, opaque + 14);
}

function maskItemFlags(page: Buffer): void {
  const lines = Math.floor((page.readUInt16LE(12) - 24) / 4);
  for (let i = 0; i < lines; i++) page.writeUInt32LE((page.readUInt32LE(24 + i * 4) & ~(3 << 15)) >>> 0, 24 + i * 4);
}

/** mask_page_content: all but the header; pd_lower and pd_upper too. */
function maskContent(page: Buffer): void {
  page.fill(0, 24);
  page.fill(0, 12, 16);
}

function maskHash(page: Buffer): void {
  maskLsnAndChecksum(page);
  maskHintBits(page);
  maskUnusedSpace(page);
  const opaque = page.readUInt16LE(16);
  const flags = page.readUInt16LE(opaque + 12);
  if ((flags & HASH_PAGE_TYPES) === 0) maskContent(page);
  else if ((flags & HASH_BUCKET_OR_OVERFLOW) !== 0) maskItemFlags(page);
  if ((flags & HASH_PAGE_TYPES) !== 0) page.writeUInt16LE(flags & ~HASH_HAS_DEAD_TUPLES, opaque + 12);
}

function maskGin(page: Buffer): void {
  maskLsnAndChecksum(page);
  maskHintBits(page);
  if ((page.readUInt16LE(page.readUInt16LE(16) + 6) & GIN_DELETED) !== 0) maskContent(page);
  else if (page.readUInt16LE(12) > 24) maskUnusedSpace(page);
}

function maskGist(page: Buffer): void {
  maskLsnAndChecksum(page);
  maskHintBits(page);
  maskUnusedSpace(page);
  const opaque = page.readUInt16LE(16);
  page.fill(0, opaque, opaque + 8);
  const flags = page.readUInt16LE(opaque + 12);
  if ((flags & GIST_LEAF) !== 0) maskItemFlags(page);
  page.writeUInt16LE((flags | GIST_FOLLOW_RIGHT) & ~GIST_HAS_GARBAGE, opaque + 12);
}

function maskBrin(page: Buffer): void {
  maskLsnAndChecksum(page);
  maskHintBits(page);
  const opaque = page.readUInt16LE(16);
  const type = page.readUInt16LE(opaque + 6);
  if (type === BRIN_REGULAR || (type === BRIN_META && page.readUInt16LE(12) > 24)) maskUnusedSpace(page);
  page.writeUInt16LE(page.readUInt16LE(opaque + 4) & ~BRIN_EVACUATE, opaque + 4);
}
