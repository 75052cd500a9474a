/** BRIN record types and page layout (brin_xlog.h, brin_page.h). */

export const XLOG_BRIN_OPMASK = 0x70;
export const XLOG_BRIN_INIT_PAGE = 0x80;
export const XLOG_BRIN_CREATE_INDEX = 0x00;
export const XLOG_BRIN_INSERT = 0x10;
export const XLOG_BRIN_UPDATE = 0x20;
export const XLOG_BRIN_SAMEPAGE_UPDATE = 0x30;
export const XLOG_BRIN_REVMAP_EXTEND = 0x40;
export const XLOG_BRIN_DESUMMARIZE = 0x50;

/** BrinSpecialSpace: four u16, the last is the page's type. */
export const SPECIAL_BYTES = 8;
export const PAGE_TYPE_OFFSET = 8190;
export const BRIN_PAGETYPE_META = 0xf091;
export const BRIN_PAGETYPE_REVMAP = 0xf092;
export const BRIN_PAGETYPE_REGULAR = 0xf093;

// BrinMetaPageData: magic, version, pages per range, last revmap page; u32 each.
export const BRIN_META_MAGIC = 0xa810_9cfa;
export const META_BYTES = 16;
export const META_LAST_REVMAP_PAGE = 12;

/** REVMAP_PAGE_MAXITEMS: TIDs of 6 bytes between page header and special space. */
export const REVMAP_ITEMS: number = Math.floor((8192 - 24 - SPECIAL_BYTES) / 6);

/** SizeOfBrinCreateIdx, SizeOfBrinInsert, where xl_brin_insert starts in xl_brin_update, SizeOfBrinDesummarize. */
export const CREATE_BYTES = 6;
export const INSERT_BYTES = 10;
export const UPDATE_INSERT_OFFSET = 4;
export const DESUMMARIZE_BYTES = 10;
