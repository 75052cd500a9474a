/** GIN record types, page flags and page layout (ginxlog.h, ginblock.h). */

export const XLOG_GIN_CREATE_PTREE = 0x10;
export const XLOG_GIN_INSERT = 0x20;
export const XLOG_GIN_SPLIT = 0x30;
export const XLOG_GIN_VACUUM_PAGE = 0x40;
export const XLOG_GIN_DELETE_PAGE = 0x50;
export const XLOG_GIN_UPDATE_META_PAGE = 0x60;
export const XLOG_GIN_INSERT_LISTPAGE = 0x70;
export const XLOG_GIN_DELETE_LISTPAGE = 0x80;
export const XLOG_GIN_VACUUM_DATA_LEAF_PAGE = 0x90;

/** Flags of an insertion. */
export const GIN_INSERT_ISDATA = 0x01;
export const GIN_INSERT_ISLEAF = 0x02;

// Actions on a segment of a posting tree leaf.
export const GIN_SEGMENT_DELETE = 1;
export const GIN_SEGMENT_INSERT = 2;
export const GIN_SEGMENT_REPLACE = 3;
export const GIN_SEGMENT_ADDITEMS = 4;

/** GinPageOpaqueData: right link u32, maxoff u16, flags u16. */
export const OPAQUE_BYTES = 8;
export const OPAQUE_RIGHTLINK = 8184;
export const OPAQUE_MAXOFF = 8188;
export const OPAQUE_FLAGS = 8190;

export const GIN_DATA = 1 << 0;
export const GIN_LEAF = 1 << 1;
export const GIN_DELETED = 1 << 2;
export const GIN_META = 1 << 3;
export const GIN_LIST = 1 << 4;
export const GIN_LIST_FULLROW = 1 << 5;
export const GIN_INCOMPLETE_SPLIT = 1 << 6;
export const GIN_COMPRESSED = 1 << 7;

/** sizeof(GinMetaPageData). */
export const META_BYTES = 56;

/** Posting tree pages: the right bound (a TID, padded to 8) follows the header, then posting lists or posting items up to pd_lower. */
export const DATA_START = 32;
export const DATA_END: number = OPAQUE_RIGHTLINK;
/** PostingItem: child block id, then the key TID. */
export const POSTING_ITEM_BYTES = 10;

/** GinPostingList: first TID, u16 number of bytes that follow. */
export const SEGMENT_HEADER_BYTES = 8;

// ginxlogUpdateMeta: locator (12), padding, metadata at 16, then prevTail u32, newRightlink u32, ntuples i32.
export const UPDATE_META_METADATA = 16;
export const UPDATE_META_PREV_TAIL = 72;
export const UPDATE_META_NEW_RIGHTLINK = 76;
export const UPDATE_META_NTUPLES = 80;
export const UPDATE_META_BYTES = 84;
