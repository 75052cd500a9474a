/** Hash index record types, page flags and metapage layout (hash_xlog.h, hash.h). */

export const XLOG_HASH_INIT_META_PAGE = 0x00;
export const XLOG_HASH_INIT_BITMAP_PAGE = 0x10;
export const XLOG_HASH_INSERT = 0x20;
export const XLOG_HASH_ADD_OVFL_PAGE = 0x30;
export const XLOG_HASH_SPLIT_ALLOCATE_PAGE = 0x40;
export const XLOG_HASH_SPLIT_PAGE = 0x50;
export const XLOG_HASH_SPLIT_COMPLETE = 0x60;
export const XLOG_HASH_MOVE_PAGE_CONTENTS = 0x70;
export const XLOG_HASH_SQUEEZE_PAGE = 0x80;
export const XLOG_HASH_DELETE = 0x90;
export const XLOG_HASH_SPLIT_CLEANUP = 0xa0;
export const XLOG_HASH_UPDATE_META_PAGE = 0xb0;
export const XLOG_HASH_VACUUM_ONE_PAGE = 0xc0;

/** Flags of xl_hash_split_allocate_page. */
export const XLH_SPLIT_META_UPDATE_MASKS = 1 << 0;
export const XLH_SPLIT_META_UPDATE_SPLITPOINT = 1 << 1;

/** HashPageOpaqueData: prev u32, next u32, bucket u32, flags u16, page id u16. */
export const OPAQUE_BYTES = 16;
export const OPAQUE_PREV = 8176;
export const OPAQUE_NEXT = 8180;
export const OPAQUE_BUCKET = 8184;
export const OPAQUE_FLAGS = 8188;
export const OPAQUE_PAGE_ID = 8190;
export const HASHO_PAGE_ID = 0xff80;
export const INVALID_BUCKET = 0xffff_ffff;

export const LH_UNUSED_PAGE = 0;
export const LH_OVERFLOW_PAGE = 1 << 0;
export const LH_BUCKET_PAGE = 1 << 1;
export const LH_BITMAP_PAGE = 1 << 2;
export const LH_META_PAGE = 1 << 3;
/** LH_PAGE_TYPE: one of the four above, or none for an unused page. */
export const LH_PAGE_TYPE = 0x0f;
export const LH_BUCKET_NEEDS_SPLIT_CLEANUP = 1 << 6;
export const LH_PAGE_HAS_DEAD_TUPLES = 1 << 7;

/** HashGetMaxBitmapSize: what lies between header and special space. */
export const CONTENT_BYTES: number = 8192 - 24 - OPAQUE_BYTES;

export const HASH_MAGIC = 0x0644_0640;
export const HASH_VERSION = 4;
/** HASH_MAX_SPLITPOINTS: (32 − 10) groups of 4 phases and 10 of one. */
export const SPARES = 98;
/** HASH_MAX_BITMAPS. */
export const MAX_BITMAPS = 1024;

// HashMetaPageData, as offsets in the page: magic, version, ntuples f64, four u16 (ffactor, bsize, bmsize, bmshift), then u32s.
export const META_MAGIC = 24;
export const META_VERSION = 28;
export const META_NTUPLES = 32;
export const META_FFACTOR = 40;
export const META_BSIZE = 42;
export const META_BMSIZE = 44;
export const META_BMSHIFT = 46;
export const META_MAXBUCKET = 48;
export const META_HIGHMASK = 52;
export const META_LOWMASK = 56;
export const META_OVFLPOINT = 60;
export const META_FIRSTFREE = 64;
export const META_NMAPS = 68;
export const META_PROCID = 72;
export const META_SPARES = 76;
export const META_MAPP: number = META_SPARES + SPARES * 4;
/** pd_lower of a metapage: sizeof(HashMetaPageData) is a multiple of 8. */
export const META_END: number = 24 + ((META_MAPP + MAX_BITMAPS * 4 - 24 + 7) & ~7);
