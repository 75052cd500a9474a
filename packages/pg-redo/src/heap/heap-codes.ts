/** Codes and flags of heap and heap2 records (heapam_xlog.h). 17 and 18 are the same (18's in-place update carries invalidations behind what
 *  redo reads); 16 differs in heap2's prune records only: names that end in _16. */

export const XLOG_HEAP_OPMASK = 0x70;
/** The heap page is initialised by this record (insert, update's new page, multi-insert). */
export const XLOG_HEAP_INIT_PAGE = 0x80;

export const XLOG_HEAP_INSERT = 0x00;
export const XLOG_HEAP_DELETE = 0x10;
export const XLOG_HEAP_UPDATE = 0x20;
export const XLOG_HEAP_TRUNCATE = 0x30;
export const XLOG_HEAP_HOT_UPDATE = 0x40;
export const XLOG_HEAP_CONFIRM = 0x50;
export const XLOG_HEAP_LOCK = 0x60;
export const XLOG_HEAP_INPLACE = 0x70;

export const XLOG_HEAP2_REWRITE = 0x00;
export const XLOG_HEAP2_PRUNE_ON_ACCESS = 0x10;
export const XLOG_HEAP2_PRUNE_VACUUM_SCAN = 0x20;
export const XLOG_HEAP2_PRUNE_VACUUM_CLEANUP = 0x30;
// The same codes in 16, where pruning, freeing line pointers and freezing have records of their own.
export const XLOG_HEAP2_PRUNE_16 = 0x10;
export const XLOG_HEAP2_VACUUM_16 = 0x20;
export const XLOG_HEAP2_FREEZE_PAGE_16 = 0x30;
export const XLOG_HEAP2_VISIBLE = 0x40;
export const XLOG_HEAP2_MULTI_INSERT = 0x50;
export const XLOG_HEAP2_LOCK_UPDATED = 0x60;
export const XLOG_HEAP2_NEW_CID = 0x70;

export const XLH_INSERT_ALL_VISIBLE_CLEARED = 0x01;
export const XLH_INSERT_ALL_FROZEN_SET = 0x20;

export const XLH_UPDATE_OLD_ALL_VISIBLE_CLEARED = 0x01;
export const XLH_UPDATE_NEW_ALL_VISIBLE_CLEARED = 0x02;
export const XLH_UPDATE_PREFIX_FROM_OLD = 0x20;
export const XLH_UPDATE_SUFFIX_FROM_OLD = 0x40;

export const XLH_DELETE_ALL_VISIBLE_CLEARED = 0x01;
export const XLH_DELETE_IS_SUPER = 0x08;
export const XLH_DELETE_IS_PARTITION_MOVE = 0x10;

export const XLH_LOCK_ALL_FROZEN_CLEARED = 0x01;

export const XLHL_XMAX_IS_MULTI = 0x01;
export const XLHL_XMAX_LOCK_ONLY = 0x02;
export const XLHL_XMAX_EXCL_LOCK = 0x04;
export const XLHL_XMAX_KEYSHR_LOCK = 0x08;
export const XLHL_KEYS_UPDATED = 0x10;

export const XLHP_CLEANUP_LOCK = 0x04;
export const XLHP_HAS_FREEZE_PLANS = 0x10;
export const XLHP_HAS_REDIRECTIONS = 0x20;
export const XLHP_HAS_DEAD_ITEMS = 0x40;
export const XLHP_HAS_NOW_UNUSED_ITEMS = 0x80;

export const XLH_FREEZE_XVAC = 0x02;
export const XLH_INVALID_XVAC = 0x04;

// Sizes of the fixed parts (SizeOf… in heapam_xlog.h).
export const INSERT_BYTES = 3;
export const DELETE_BYTES = 8;
export const UPDATE_BYTES = 14;
export const LOCK_BYTES = 8;
export const TUPLE_HEADER_IN_WAL_BYTES = 5;
export const MULTI_INSERT_BYTES = 4;
export const MULTI_INSERT_TUPLE_BYTES = 7;
export const PRUNE_BYTES = 2;
export const PRUNE_16_BYTES = 9;
export const VACUUM_16_BYTES = 2;
export const FREEZE_PAGE_16_BYTES = 7;
export const FREEZE_PLAN_BYTES = 12;
export const VISIBLE_BYTES = 5;

// Block ids of the visibility map page. Since 18.5 (and the same minor releases of 17) a record that clears map bits also names the map
// page; before, the clear was implied by a flag. Both are legal for one major.
export const INSERT_VM_BLOCK = 1;
export const DELETE_VM_BLOCK = 1;
export const MULTI_INSERT_VM_BLOCK = 1;
export const LOCK_VM_BLOCK = 1;
export const UPDATE_OLD_BLOCK = 1;
export const UPDATE_VM_NEW_BLOCK = 2;
export const UPDATE_VM_OLD_BLOCK = 3;
