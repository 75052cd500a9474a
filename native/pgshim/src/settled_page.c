/* What a page says about whether it can be dropped. Layouts: bufpage.h, itemid.h, htup_details.h, nbtree.h, sequence.c; the same in 16, 17 and 18.
 *
 * Replay gives back every byte of a page that matters, with these exceptions (docs/protocols/shim-agent.md, Rounds):
 * - a page that WAL has not named yet has no LSN, or a made-up small one: an index being built by GIN, GiST or SP-GiST, whose WAL comes at the end;
 * - command numbers within a transaction that is still open, and the token of a speculative insertion;
 * - the cycle number a B-tree page gets when it is split under a running VACUUM;
 * - sequences, whose WAL runs ahead of the page.
 * Invariant: anything that cannot be understood is not settled. */
#include "settled_page.h"

#include <string.h>

#include "util.h"

#define HEADER_BYTES 24u
/* Made-up LSNs are smaller: 1 for GiST, a counter for unlogged relations. WAL begins in its second segment. */
#define LSN_MIN ((uint64_t)16 << 20)
#define BTREE_SPECIAL_BYTES 16u
/* Larger numbers at the end of a special area of that size are the page ids of hash and GiST. */
#define BTREE_CYCLE_MAX 0xff7fu
#define SEQUENCE_SPECIAL_BYTES 8u
#define SEQUENCE_MAGIC 0x1717u

#define LP_NORMAL 1u
#define TUPLE_HEADER_BYTES 23u
#define XID_FIRST_NORMAL 3u
#define CTID_ORDINARY_MAX 0xfffcu
#define HEAP_COMBOCID 0x0020u
#define HEAP_XMIN_FROZEN 0x0300u
#define HEAP_XMAX_INVALID 0x0800u
#define HEAP_XMAX_IS_MULTI 0x1000u
#define HEAP_MOVED 0xc000u

static uint16_t u16(const unsigned char *at)
{
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static uint32_t u32(const unsigned char *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static bool may_run(uint32_t xid, uint32_t horizon)
{
    return xid >= XID_FIRST_NORMAL && (int32_t)(xid - horizon) >= 0;
}

/* A tuple of an open transaction is the same after replay when it is of the transaction's first command. */
static bool settled_tuple(const unsigned char *tuple, uint32_t horizon)
{
    uint16_t infomask = u16(tuple + 20);
    bool no_xmax = (infomask & HEAP_XMAX_INVALID) != 0;
    if ((infomask & HEAP_MOVED) != 0 || (!no_xmax && (infomask & HEAP_XMAX_IS_MULTI) != 0))
        return false;
    bool inserted = (infomask & HEAP_XMIN_FROZEN) != HEAP_XMIN_FROZEN && may_run(u32(tuple), horizon);
    bool deleted = !no_xmax && may_run(u32(tuple + 4), horizon);
    if (!inserted && !deleted)
        return true;
    return (infomask & HEAP_COMBOCID) == 0 && u32(tuple + 8) == 0 && u16(tuple + 16) <= CTID_ORDINARY_MAX;
}

static bool settled_heap(const unsigned char *page, uint16_t lower, uint32_t horizon)
{
    for (uint32_t at = HEADER_BYTES; at + 4 <= lower; at += 4) {
        uint32_t item = u32(page + at);
        uint32_t offset = item & 0x7fff, flags = item >> 15 & 3, length = item >> 17;
        if (flags != LP_NORMAL)
            continue;
        if (offset < lower || length < TUPLE_HEADER_BYTES || offset + length > BLCKSZ || !settled_tuple(page + offset, horizon))
            return false;
    }
    return true;
}

bool settled_page(const unsigned char *page, const struct settle_rule *rule)
{
    uint64_t lsn = (uint64_t)u32(page) << 32 | u32(page + 4);
    uint16_t lower = u16(page + 12), upper = u16(page + 14), special = u16(page + 16);
    if (lsn < LSN_MIN || lsn > rule->lsn)
        return false;
    if (lower < HEADER_BYTES || lower > upper || upper > special || special > BLCKSZ)
        return false;
    if (special == BLCKSZ)
        return !rule->open || settled_heap(page, lower, rule->horizon);
    if (BLCKSZ - special == BTREE_SPECIAL_BYTES) {
        uint16_t cycle = u16(page + BLCKSZ - 2);
        return cycle == 0 || cycle > BTREE_CYCLE_MAX;
    }
    return BLCKSZ - special != SEQUENCE_SPECIAL_BYTES || u32(page + special) != SEQUENCE_MAGIC;
}
