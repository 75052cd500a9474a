/* Laying out the sparse segment files: once, in the postmaster, before main. Files that exist (pages the agent laid down itself) are kept
 * and extended to their length. A missing file would later be an error in some query, so any failure here ends the start. */
#define _GNU_SOURCE
#include "layout.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libc.h"
#include "resident_map.h"
#include "segment_path.h"
#include "util.h"

static void create(int directory, const char *name, const char *path, off_t length)
{
    struct stat st = {0};
    int fd = real.openat(directory, name, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0 && errno == EEXIST) {
        fd = real.openat(directory, name, O_RDWR | O_CLOEXEC);
        if (fd >= 0 && fstat(fd, &st) != 0)
            st.st_size = 0;
    }
    if (fd < 0 || (st.st_size < length && real.ftruncate(fd, length) != 0))
        shim_die("cannot lay out %s: %s", path, strerror(errno));
    real.close(fd);
}

void layout_create(const char *datadir)
{
    int root = real.open(datadir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (root < 0)
        shim_die("cannot open the data directory %s: %s", datadir, strerror(errno));
    /* Entries are sorted by database: one open directory at a time. */
    int directory = -1;
    char current[64] = "";
    for (uint32_t i = 0; i < map->entry_count; i++) {
        struct map_entry *entry = &map_entries[i];
        char path[64];
        size_t length = segment_format(entry, path, sizeof path);
        if (length == 0)
            shim_die("relation %u/%u/%u fork %u of the resident map has no path", entry->spc, entry->db, entry->rel, entry->fork);
        if (map_is_dropped(entry))
            continue;
        char *slash = strrchr(path, '/');
        size_t parent = (size_t)(slash - path);
        if (directory < 0 || strlen(current) != parent || memcmp(current, path, parent) != 0) {
            if (directory >= 0)
                real.close(directory);
            memcpy(current, path, parent);
            current[parent] = '\0';
            directory = real.openat(root, current, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
            if (directory < 0)
                shim_die("cannot open %s/%s: %s", datadir, current, strerror(errno));
        }
        create(directory, slash + 1, path, (off_t)map_nblocks(entry) * BLCKSZ);
    }
    if (directory >= 0)
        real.close(directory);
    real.close(root);
}
