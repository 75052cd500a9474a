/* Which entry of the resident map an open file descriptor belongs to. Inherited by fork as plain memory. */
#ifndef PGSHIM_FD_TABLE_H
#define PGSHIM_FD_TABLE_H

#include <stddef.h>
#include <stdint.h>

#include "resident_map.h"

/* Descriptors from here on cannot be tracked, so opening a tracked file there fails. Postgres stays below max_files_per_process. */
#define FD_TABLE_SIZE 65536

extern _Atomic int32_t fd_entries[FD_TABLE_SIZE]; /* entry index + 1; 0: not ours */

static inline void fd_table_set(int fd, int32_t entry_plus_one)
{
    if (fd >= 0 && fd < FD_TABLE_SIZE)
        atomic_store_explicit(&fd_entries[fd], entry_plus_one, memory_order_relaxed);
}

static inline int32_t fd_table_get(int fd)
{
    return fd >= 0 && fd < FD_TABLE_SIZE ? atomic_load_explicit(&fd_entries[fd], memory_order_relaxed) : 0;
}

/* The entry behind fd while its name still stands for what storage has; NULL: the file is local. */
static inline struct map_entry *fd_table_entry(int fd)
{
    int32_t index = fd_table_get(fd);
    if (index == 0 || map == NULL)
        return NULL;
    struct map_entry *entry = &map_entries[index - 1];
    return map_is_dropped(entry) ? NULL : entry;
}

#endif
