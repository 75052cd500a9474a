/** What every page Postgres writes satisfies, whatever is on it: the header's pointers in order (PageHeaderIsValid) and, where a page's items are
 *  tuples, each of them where tuples are. */
import { BLCKSZ } from '@lakebase/ids';
import { isNewPage, RM_BTREE_ID, RM_GIST_ID, RM_HEAP2_ID, RM_HEAP_ID } from '@lakebase/pg-format';

/** Resource managers whose main-fork pages hold line pointers only; the others have maps, bitmaps or lists on some pages. */
const ITEM_PAGES = new Set([RM_HEAP_ID, RM_HEAP2_ID, RM_BTREE_ID, RM_GIST_ID]);
const LP_NORMAL = 1;
const LP_DEAD = 3;
/** BTP_DELETED, BTP_META; F_DELETED: such pages hold something else where line pointers would be. */
const BTREE_OTHER = 4 | 8;
const GIST_OTHER = 2;

/** What is broken; undefined when nothing is. */
export function brokenPage(page: Buffer, rmid: number): string | undefined {
  if (isNewPage(page)) return undefined;
  const lower = page.readUInt16LE(12);
  const upper = page.readUInt16LE(14);
  const special = page.readUInt16LE(16);
  if (lower < 24 || lower > upper || upper > special || special > BLCKSZ) return `pointers ${lower}, ${upper}, ${special}`;
  if (!ITEM_PAGES.has(rmid)) return undefined;
  const flags = special <= BLCKSZ - 16 ? page.readUInt16LE(special + 12) : 0;
  if ((rmid === RM_BTREE_ID && (flags & BTREE_OTHER) !== 0) || (rmid === RM_GIST_ID && (flags & GIST_OTHER) !== 0)) return undefined;
  for (let at = 24; at + 4 <= lower; at += 4) {
    const id = page.readUInt32LE(at);
    const [offset, flags, length] = [id & 0x7fff, (id >>> 15) & 3, id >>> 17];
    if (flags !== LP_NORMAL && (flags !== LP_DEAD || length === 0)) continue;
    if (offset < upper || offset + length > special) return `item ${(at - 20) / 4} at ${offset}+${length} outside ${upper}..${special}`;
  }
  return undefined;
}
