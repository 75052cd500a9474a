/* The bound on a compute's scratch: dropping clean blocks, which storage has, when there are too many of them or the disk is full. */
#ifndef PGSHIM_CACHE_H
#define PGSHIM_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "resident_map.h"
#include "util.h"

/* Drops at least `wanted` clean blocks if there are that many; returns how many went. Never waits for anybody: may be called by who owns busy
 * blocks. Keeps errno. */
uint32_t cache_evict(uint32_t wanted);

void cache_settle_slow(void);

/* After blocks were fetched: back below the bound. */
static inline void cache_settle(void)
{
    uint64_t budget = atomic_load_explicit(&map->clean_budget, memory_order_relaxed);
    if (unlikely(budget != 0 && atomic_load_explicit(&map->clean_blocks, memory_order_relaxed) > budget))
        cache_settle_slow();
}

/* After a write failed with ENOSPC or EDQUOT: true when something was dropped, so that trying again makes sense. Keeps errno. */
bool cache_make_room(size_t bytes);

static inline bool cache_is_full(int error)
{
    return error == ENOSPC || error == EDQUOT;
}

#endif
