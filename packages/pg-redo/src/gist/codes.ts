/** GiST record types, page flags and page layout (gistxlog.h, gist.h). */

export const XLOG_GIST_PAGE_UPDATE = 0x00;
export const XLOG_GIST_DELETE = 0x10;
export const XLOG_GIST_PAGE_REUSE = 0x20;
export const XLOG_GIST_PAGE_SPLIT = 0x30;
export const XLOG_GIST_PAGE_DELETE = 0x60;
export const XLOG_GIST_ASSIGN_LSN = 0x70;

/** GISTPageOpaqueData: node sequence number (an LSN, two u32, high first), right link u32, flags u16, page id u16. */
export const OPAQUE_BYTES = 16;
export const OPAQUE_NSN = 8176;
export const OPAQUE_RIGHTLINK = 8184;
export const OPAQUE_FLAGS = 8188;
export const OPAQUE_PAGE_ID = 8190;
export const GIST_PAGE_ID = 0xff81;

export const F_LEAF = 1 << 0;
export const F_DELETED = 1 << 1;
export const F_TUPLES_DELETED = 1 << 2;
export const F_FOLLOW_RIGHT = 1 << 3;
export const F_HAS_GARBAGE = 1 << 4;

export const GIST_ROOT_BLKNO = 0;

// gistxlogPageSplit: origrlink u32, padding, orignsn u64, origleaf u8, padding, npage u16, markfollowright u8.
export const SPLIT_RIGHTLINK = 0;
export const SPLIT_NSN = 8;
export const SPLIT_IS_LEAF = 16;
export const SPLIT_PAGES = 18;
export const SPLIT_FOLLOW_RIGHT = 20;
export const SPLIT_BYTES = 21;
