/** What every page Postgres writes satisfies, whatever is on it: the header's pointers in order (PageHeaderIsValid) and, where a page's items are
 *  tuples, each of them where tuples are. */
import { BLCKSZ } from '@lakebase/ids';
import {
  isNewPage,
  RM_BRIN_ID,
  RM_BTREE_ID,
  RM_GIN_ID,
  RM_GIST_ID,
  RM_HASH_ID,
  RM_HEAP2_ID,
  RM_HEAP_ID,
  RM_SEQ_ID,
  RM_SPGIST_ID,
} from '@lakebase/pg-format';

const LP_NORMAL = 1;
const LP_DEAD = 3;
/** BTP_DELETED, BTP_META. */
const BTREE_OTHER = 4 | 8;
/** F_DELETED. */
const GIST_OTHER = 2;
/** LH_BUCKET_PAGE, LH_OVERFLOW_PAGE; the others hold bitmaps or metadata. */
const HASH_ITEMS = 2 | 1;
/** GIN_DATA, GIN_DELETED, GIN_META. */
const GIN_OTHER = 1 | 4 | 8;
/** SPGIST_META. */
const SPGIST_OTHER = 1;
const BRIN_REGULAR = 0xf093;

/** Whether the page's line pointers are line pointers: on some pages a map, a bitmap or a list is where they would be. */
function holdsItems(page: Buffer, special: number, rmid: number): boolean {
  if (rmid === RM_HEAP_ID || rmid === RM_HEAP2_ID || rmid === RM_SEQ_ID) return true;
  const at = (offset: number): number => (special + offset + 2 <= BLCKSZ ? page.readUInt16LE(special + offset) : 0);
  switch (rmid) {
    case RM_BTREE_ID:
      return (at(12) & BTREE_OTHER) === 0;
    case RM_GIST_ID:
      return (at(12) & GIST_OTHER) === 0;
    case RM_HASH_ID:
      return (at(12) & HASH_ITEMS) !== 0;
    case RM_GIN_ID:
      return (at(6) & GIN_OTHER) === 0;
    case RM_SPGIST_ID:
      return (at(0) & SPGIST_OTHER) === 0;
    case RM_BRIN_ID:
      return at(6) === BRIN_REGULAR;
    default:
      return false;
  }
}

/** What is broken; undefined when nothing is. */
export function brokenPage(page: Buffer, rmid: number): string | undefined {
  if (isNewPage(page)) return undefined;
  const lower = page.readUInt16LE(12);
  const upper = page.readUInt16LE(14);
  const special = page.readUInt16LE(16);
  if (lower < 24 || lower > upper || upper > special || special > BLCKSZ) return `pointers ${lower}, ${upper}, ${special}`;
  if (!holdsItems(page, special, rmid)) return undefined;
  for (let at = 24; at + 4 <= lower; at += 4) {
    const id = page.readUInt32LE(at);
    const [offset, flags, length] = [id & 0x7fff, (id >>> 15) & 3, id >>> 17];
    if (flags !== LP_NORMAL && (flags !== LP_DEAD || length === 0)) continue;
    if (offset < upper || offset + length > special) return `item ${(at - 20) / 4} at ${offset}+${length} outside ${upper}..${special}`;
  }
  return undefined;
}
