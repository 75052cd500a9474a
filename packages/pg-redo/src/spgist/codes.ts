/** SP-GiST record types, page flags and tuple layout (spgxlog.h, spgist_private.h). */

export const XLOG_SPGIST_ADD_LEAF = 0x10;
export const XLOG_SPGIST_MOVE_LEAFS = 0x20;
export const XLOG_SPGIST_ADD_NODE = 0x30;
export const XLOG_SPGIST_SPLIT_TUPLE = 0x40;
export const XLOG_SPGIST_PICKSPLIT = 0x50;
export const XLOG_SPGIST_VACUUM_LEAF = 0x60;
export const XLOG_SPGIST_VACUUM_ROOT = 0x70;
export const XLOG_SPGIST_VACUUM_REDIRECT = 0x80;

/** SpGistPageOpaqueData: flags, number of redirections, number of placeholders, page id; u16 each. */
export const OPAQUE_BYTES = 8;
export const OPAQUE_FLAGS = 8184;
export const OPAQUE_REDIRECTIONS = 8186;
export const OPAQUE_PLACEHOLDERS = 8188;
export const OPAQUE_PAGE_ID = 8190;
export const SPGIST_PAGE_ID = 0xff82;

export const SPGIST_LEAF = 1 << 2;
export const SPGIST_NULLS = 1 << 3;

// tupstate: the low two bits of the first word of every tuple.
export const SPGIST_LIVE = 0;
export const SPGIST_REDIRECT = 1;
export const SPGIST_DEAD = 2;
export const SPGIST_PLACEHOLDER = 3;

/** Leaf tuple: state and size (30 bits) u32, t_info u16 with the next item of the chain in 14 bits, heap TID. */
export const LEAF_HEADER_BYTES = 12;
export const NEXT_OFFSET_MASK = 0x3fff;
/** Dead tuple: the same, with a redirection in place of the heap TID, and an xid. */
export const DEAD_TUPLE_BYTES = 16;
export const DEAD_POINTER = 6;
export const DEAD_XID = 12;
/** Inner tuple: state 2 bits, all-the-same 1, nodes 13, prefix size 16; size u16; then prefix, then nodes, which are index tuples. */
export const INNER_HEADER_BYTES = 8;

// Fixed parts of the records; spgxlogState is redirectXid u32, isBuild u8, padding.
export const ADD_LEAF_BYTES = 10;
export const MOVE_LEAFS_STATE = 12;
export const MOVE_LEAFS_BYTES = 20;
export const ADD_NODE_STATE = 12;
export const ADD_NODE_BYTES = 20;
export const SPLIT_TUPLE_BYTES = 6;
export const PICKSPLIT_STATE = 20;
export const PICKSPLIT_BYTES = 28;
export const VACUUM_LEAF_STATE = 8;
export const VACUUM_LEAF_BYTES = 16;
export const VACUUM_ROOT_BYTES = 12;
export const VACUUM_REDIRECT_BYTES = 10;
