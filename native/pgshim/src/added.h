/* Entries that were added to the map since the start, for files Postgres made, and what of a file was added to its entry. */
#ifndef PGSHIM_ADDED_H
#define PGSHIM_ADDED_H

#include <stdbool.h>
#include <stdint.h>

#include "resident_map.h"

/* Index of the added entry of that name, or -1. */
int32_t added_find(const struct segment_name *name);

/* The entry that has the area with that index. */
struct map_entry *added_area_owner(uint32_t area);

/* With the gate closed, by the one process that runs rounds: the first `nblocks` blocks of a file without an entry, or of one whose entry has fewer, are
 * tracked from now on, as written ones. False: there is no room in the map. */
bool added_adopt(const struct segment_name *name, uint32_t nblocks);
bool added_grow(struct map_entry *entry, uint32_t nblocks);

#endif
