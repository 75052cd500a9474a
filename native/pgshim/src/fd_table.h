/* What is known of an open file descriptor: which entry of the resident map it belongs to, and whether its bytes are encrypted.
 * Inherited by fork as plain memory. */
#ifndef PGSHIM_FD_TABLE_H
#define PGSHIM_FD_TABLE_H

#include <stddef.h>
#include <stdint.h>

#include "resident_map.h"

/* Descriptors from here on cannot be tracked, so opening a tracked file there fails. Postgres stays below max_files_per_process. */
#define FD_TABLE_SIZE 65536

#define FD_LOCKED 1u /* every read and write takes the file's lock */
#define FD_APPEND 2u /* opened with O_APPEND, which we keep from the kernel */

extern _Atomic int32_t fd_entries[FD_TABLE_SIZE];  /* entry index + 1; 0: not ours; negative: a WAL segment (wal.h) */
extern _Atomic uint64_t fd_inodes[FD_TABLE_SIZE];  /* inode number of an encrypted file; 0: plain */
extern _Atomic uint8_t fd_flags[FD_TABLE_SIZE];

/* A segment file of a main fork that had no entry when it was opened: it may get one. */
struct fd_name {
    struct segment_name name;
    _Atomic bool known;
    _Atomic uint32_t looked; /* how many entries had been added when the map was asked last */
};
extern struct fd_name fd_names[FD_TABLE_SIZE];

static inline void fd_table_set(int fd, int32_t entry_plus_one)
{
    if (fd >= 0 && fd < FD_TABLE_SIZE)
        atomic_store_explicit(&fd_entries[fd], entry_plus_one, memory_order_relaxed);
}

static inline int32_t fd_table_get(int fd)
{
    return fd >= 0 && fd < FD_TABLE_SIZE ? atomic_load_explicit(&fd_entries[fd], memory_order_relaxed) : 0;
}

static inline void fd_table_set_encrypted(int fd, uint64_t inode, uint8_t flags)
{
    if (fd < 0 || fd >= FD_TABLE_SIZE)
        return;
    atomic_store_explicit(&fd_flags[fd], flags, memory_order_relaxed);
    atomic_store_explicit(&fd_inodes[fd], inode, memory_order_relaxed);
}

static inline uint64_t fd_table_inode(int fd)
{
    return fd >= 0 && fd < FD_TABLE_SIZE ? atomic_load_explicit(&fd_inodes[fd], memory_order_relaxed) : 0;
}

/* Only for encrypted descriptors. */
static inline uint8_t fd_table_flags(int fd)
{
    return atomic_load_explicit(&fd_flags[fd], memory_order_relaxed);
}

/* Opened without an entry; `looked`: map->added from before the look. */
static inline void fd_table_set_name(int fd, const struct segment_name *name, uint32_t looked)
{
    if (fd < 0 || fd >= FD_TABLE_SIZE)
        return;
    fd_names[fd].name = *name;
    atomic_store_explicit(&fd_names[fd].looked, looked, memory_order_relaxed);
    atomic_store_explicit(&fd_names[fd].known, true, memory_order_relaxed);
}

static inline bool fd_table_may_get_entry(int fd)
{
    return fd >= 0 && fd < FD_TABLE_SIZE && atomic_load_explicit(&fd_names[fd].known, memory_order_relaxed);
}

static inline void fd_table_forget(int fd)
{
    if (fd_table_may_get_entry(fd))
        atomic_store_explicit(&fd_names[fd].known, false, memory_order_relaxed);
    fd_table_set(fd, 0);
    fd_table_set_encrypted(fd, 0, 0);
}

/* After dup: `copy` is another name of `fd`. */
static inline void fd_table_copy(int fd, int copy)
{
    fd_table_set(copy, fd_table_get(fd));
    if (fd_table_may_get_entry(fd))
        fd_table_set_name(copy, &fd_names[fd].name, atomic_load(&fd_names[fd].looked));
    uint64_t inode = fd_table_inode(fd);
    fd_table_set_encrypted(copy, inode, inode == 0 ? 0 : fd_table_flags(fd));
}

/* Whether its reads and writes may have to follow the rules: it has an entry, or may get one. */
static inline bool fd_table_is_segment(int fd)
{
    return fd_table_get(fd) > 0 || fd_table_may_get_entry(fd);
}

/* Asks the map again when entries were added since. */
struct map_entry *fd_table_look(int fd);

/* True while what fd_table_entry() said is so: no entry was added meanwhile. */
static inline bool fd_table_holds(int fd)
{
    return map == NULL || !fd_table_may_get_entry(fd) || atomic_load(&map->added) == atomic_load_explicit(&fd_names[fd].looked, memory_order_relaxed);
}

/* The entry behind fd while its name still stands for what storage has; NULL: the file is local. */
static inline struct map_entry *fd_table_entry(int fd)
{
    int32_t index = fd_table_get(fd);
    if (index <= 0)
        return fd_table_may_get_entry(fd) ? fd_table_look(fd) : NULL;
    if (map == NULL)
        return NULL;
    struct map_entry *entry = &map_entries[index - 1];
    return map_is_dropped(entry) ? NULL : entry;
}

#endif
