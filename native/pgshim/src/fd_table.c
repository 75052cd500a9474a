/* What is known of an open file descriptor. */
#include "fd_table.h"

#include <errno.h>
#include <sys/stat.h>

_Atomic int32_t fd_entries[FD_TABLE_SIZE];
_Atomic uint64_t fd_inodes[FD_TABLE_SIZE];
_Atomic uint8_t fd_flags[FD_TABLE_SIZE];
struct fd_name fd_names[FD_TABLE_SIZE];

struct map_entry *fd_table_look(int fd)
{
    struct fd_name *opened = &fd_names[fd];
    if (map == NULL)
        return NULL;
    uint32_t added = atomic_load(&map->added);
    if (added == atomic_load_explicit(&opened->looked, memory_order_relaxed))
        return NULL;
    int32_t index = map_find(&opened->name);
    struct stat st;
    int saved = errno;
    /* A file that has lost its name has nothing to do with what has it now. */
    bool found = index >= 0 && !map_is_dropped(&map_entries[index]) && fstat(fd, &st) == 0 && st.st_nlink > 0;
    errno = saved;
    atomic_store_explicit(&opened->looked, added, memory_order_relaxed);
    if (!found)
        return NULL;
    fd_table_set(fd, index + 1);
    atomic_store_explicit(&opened->known, false, memory_order_relaxed);
    return &map_entries[index];
}
