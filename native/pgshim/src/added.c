/* Entries added since the start, and the areas their cells lie in. Layout: docs/protocols/shim-agent.md, Resident map.
 *
 * Invariants
 * - Only the process that has closed the gate adds; everybody may look at any time. An entry is complete before `added` counts it, and never moves.
 * - An added entry is for segments of main forks, has no cells of the start (base_blocks 0) and an area of its own.
 * - Whoever died in the middle of adding has added nothing: what it left is written again, or passed over (an area that nobody has). */
#define _GNU_SOURCE
#include "added.h"

#include <string.h>

static _Atomic uint32_t *slots(void)
{
    return (void *)((char *)map + map->lookup_offset);
}

static _Atomic uint32_t *owners(void)
{
    return slots() + (size_t)map->added_max * 2;
}

/* Any spread will do: both sides are this file. */
static uint32_t slot_of(const struct segment_name *name)
{
    uint32_t h = name->rel * 2654435761u ^ name->db * 2246822519u ^ name->segno * 3266489917u ^ name->spc;
    return (h ^ h >> 15) & (map->added_max * 2 - 1);
}

static bool is_named(const struct map_entry *entry, const struct segment_name *name)
{
    return entry->rel == name->rel && entry->db == name->db && entry->spc == name->spc && entry->segno == name->segno && entry->fork == name->fork;
}

int32_t added_find(const struct segment_name *name)
{
    uint32_t added = atomic_load(&map->added);
    if (added == 0 || name->fork != 0)
        return -1;
    uint32_t mask = map->added_max * 2 - 1;
    for (uint32_t at = slot_of(name), n = 0; n <= mask; at = (at + 1) & mask, n++) {
        uint32_t index = atomic_load(&slots()[at]);
        if (index == 0)
            return -1;
        if (index - 1 < map->entry_count + added && is_named(&map_entries[index - 1], name))
            return (int32_t)index - 1;
    }
    return -1;
}

struct map_entry *added_area_owner(uint32_t area)
{
    uint32_t index = atomic_load(&owners()[area]);
    return index == 0 || index > map_length() ? NULL : &map_entries[index - 1];
}

/* A free slot, or the one that a process which died left for the same index. */
static void enter(const struct segment_name *name, uint32_t index)
{
    uint32_t mask = map->added_max * 2 - 1;
    uint32_t at = slot_of(name);
    while (atomic_load(&slots()[at]) != 0 && atomic_load(&slots()[at]) != index + 1)
        at = (at + 1) & mask;
    atomic_store(&slots()[at], index + 1);
}

static bool take_area(struct map_entry *entry, uint32_t index)
{
    uint32_t area = atomic_load(&map->areas);
    if (area == map->areas_max)
        return false;
    atomic_store(&map->areas, area + 1);
    atomic_store(&owners()[area], index + 1);
    atomic_store(&entry->area, area + 1);
    return true;
}

bool added_grow(struct map_entry *entry, uint32_t nblocks)
{
    uint32_t before = map_nblocks(entry);
    if (nblocks > AREA_BLOCKS)
        nblocks = AREA_BLOCKS;
    if (nblocks <= before)
        return true;
    if (nblocks > entry->base_blocks && atomic_load(&entry->area) == 0 && !take_area(entry, (uint32_t)(entry - map_entries)))
        return false;
    map_make_written(entry, before, nblocks);
    /* This compute wrote them: they belong to what the next one fetches ahead. */
    map_touch(entry, before, nblocks);
    atomic_store(&entry->nblocks, nblocks);
    map_count(&map->blocks_adopted, nblocks - before);
    return true;
}

bool added_adopt(const struct segment_name *name, uint32_t nblocks)
{
    uint32_t added = atomic_load(&map->added);
    uint32_t index = map->entry_count + added;
    if (added == map->added_max)
        return false;
    struct map_entry *entry = &map_entries[index];
    entry->spc = name->spc;
    entry->db = name->db;
    entry->rel = name->rel;
    entry->fork = entry->source_fork = name->fork;
    entry->segno = name->segno;
    entry->bitmap_offset = 0;
    entry->base_blocks = 0;
    atomic_store(&entry->area, 0);
    atomic_store(&entry->nblocks, 0);
    atomic_store(&entry->flags, ENTRY_LAID);
    if (!added_grow(entry, nblocks))
        return false;
    enter(name, index);
    atomic_store(&map->added, added + 1);
    return true;
}
