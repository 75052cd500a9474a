/* Laying out the sparse segment files: all at once, or each when its name is first used. */
#ifndef PGSHIM_LAYOUT_H
#define PGSHIM_LAYOUT_H

#include <stdbool.h>

#include "resident_map.h"

int layout_entry_slow(struct map_entry *entry);

/* The file of the entry exists at its full length after this; 0 or an errno. */
static inline int layout_entry(struct map_entry *entry)
{
    if (__builtin_expect((atomic_load_explicit(&entry->flags, memory_order_acquire) & ENTRY_LAID) != 0, 1))
        return 0;
    return layout_entry_slow(entry);
}

/* After dropping the entry: waits until nobody is creating its file or dropping blocks of it any more. */
void layout_settle(struct map_entry *entry);

/* Lays out everything in that directory, before somebody lists it; 0 or an errno. */
int layout_directory(const char *path);

/* Everything, in the postmaster; ends the process when it cannot. */
void layout_all(void);

/* The postmaster lists every database directory at each start, looking for temporary relations only: it gets what is there. */
void layout_in_postmaster(bool yes);

#endif
