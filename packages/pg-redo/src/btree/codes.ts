/** nbtree record types, page flags and tuple layout (nbtxlog.h, nbtree.h, itup.h). */

export const XLOG_BTREE_INSERT_LEAF = 0x00;
export const XLOG_BTREE_INSERT_UPPER = 0x10;
export const XLOG_BTREE_INSERT_META = 0x20;
export const XLOG_BTREE_SPLIT_L = 0x30;
export const XLOG_BTREE_SPLIT_R = 0x40;
export const XLOG_BTREE_INSERT_POST = 0x50;
export const XLOG_BTREE_DEDUP = 0x60;
export const XLOG_BTREE_DELETE = 0x70;
export const XLOG_BTREE_UNLINK_PAGE = 0x80;
export const XLOG_BTREE_UNLINK_PAGE_META = 0x90;
export const XLOG_BTREE_NEWROOT = 0xa0;
export const XLOG_BTREE_MARK_PAGE_HALFDEAD = 0xb0;
export const XLOG_BTREE_VACUUM = 0xc0;
export const XLOG_BTREE_REUSE_PAGE = 0xd0;
export const XLOG_BTREE_META_CLEANUP = 0xe0;

// btpo_flags.
export const BTP_LEAF = 1 << 0;
export const BTP_ROOT = 1 << 1;
export const BTP_DELETED = 1 << 2;
export const BTP_META = 1 << 3;
export const BTP_HALF_DEAD = 1 << 4;
export const BTP_HAS_GARBAGE = 1 << 6;
export const BTP_INCOMPLETE_SPLIT = 1 << 7;
export const BTP_HAS_FULLXID = 1 << 8;

/** BTPageOpaqueData: prev u32, next u32, level u32, flags u16, cycle id u16, at the end of the page. */
export const OPAQUE_BYTES = 16;
export const OPAQUE_OFFSET = 8176;
export const OPAQUE_PREV: number = OPAQUE_OFFSET;
export const OPAQUE_NEXT: number = OPAQUE_OFFSET + 4;
export const OPAQUE_LEVEL: number = OPAQUE_OFFSET + 8;
export const OPAQUE_FLAGS: number = OPAQUE_OFFSET + 12;
export const OPAQUE_CYCLE_ID: number = OPAQUE_OFFSET + 14;
/** No sibling. */
export const P_NONE = 0;
export const P_HIKEY = 1;

export const BTREE_MAGIC = 0x053162;
/** xl_btree_metadata. */
export const METADATA_BYTES = 28;

// IndexTupleData: t_tid (block high u16, low u16, offset u16), t_info u16.
export const TUPLE_HEADER_BYTES = 8;
export const TID_BYTES = 6;
export const INDEX_SIZE_MASK = 0x1fff;
/** INDEX_AM_RESERVED_BIT: t_tid does not hold a heap TID. */
export const INDEX_ALT_TID_MASK = 0x2000;
export const BT_OFFSET_MASK = 0x0fff;
export const BT_IS_POSTING = 0x2000;
