/* Laying out the sparse segment files.
 *
 * Creating a file costs a file system 0.05 to 1 ms, and a database has hundreds, of which a start touches a few dozen. So a file may be
 * left out until its name is used: opened, looked at, listed, removed.
 *
 * Invariants
 * - One process creates a file (ENTRY_LAYING); everybody else waits, so nobody ever sees it shorter than it is.
 * - A file that exists already (pages the agent laid down itself) is kept and extended to its length.
 * - A dropped name is never created. Whoever drops one waits for a creation under way before the file is removed. */
#define _GNU_SOURCE
#include "layout.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libc.h"
#include "segment_path.h"
#include "util.h"

#define CREATOR_GONE_MS 60000

static bool in_postmaster;

void layout_in_postmaster(bool yes)
{
    in_postmaster = yes;
}

static int create(const char *path, off_t length)
{
    struct stat st = {0};
    int fd = real.open(path, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
    bool created = fd >= 0;
    if (!created && errno == EEXIST) {
        fd = real.open(path, O_RDWR | O_CLOEXEC);
        if (fd >= 0 && fstat(fd, &st) != 0)
            st.st_size = 0;
    }
    int error = fd < 0 || (st.st_size < length && real.ftruncate(fd, length) != 0) ? errno : 0;
    if (fd >= 0)
        real.close(fd);
    if (error != 0 && created)
        real.unlink(path);
    return error;
}

static int create_and_publish(struct map_entry *entry)
{
    char path[PATH_MAX + 192];
    char name[160];
    int error = segment_format(entry, name, sizeof name) == 0 ? EINVAL : 0;
    snprintf(path, sizeof path, "%s/%s", segment_path_datadir(), name);
    if (error == 0 && !map_is_dropped(entry))
        error = create(path, (off_t)map_nblocks(entry) * BLCKSZ);
    if (error != 0)
        shim_log("cannot lay out %s: %s", path, strerror(error));
    atomic_fetch_xor(&entry->flags, error == 0 ? ENTRY_LAYING | ENTRY_LAID : ENTRY_LAYING);
    map_wake(&entry->flags);
    return error;
}

int layout_entry_slow(struct map_entry *entry)
{
    sigset_t saved;
    int saved_errno = errno;
    int error = 0;
    int64_t deadline = now_ms() + CREATOR_GONE_MS;
    signals_hold(&saved);
    for (;;) {
        uint32_t flags = atomic_load(&entry->flags);
        if ((flags & ENTRY_LAID) != 0)
            break;
        if ((flags & ENTRY_LAYING) != 0) {
            if (now_ms() > deadline) {
                error = EIO;
                break;
            }
            map_sleep(&entry->flags, flags);
        } else if (atomic_compare_exchange_strong(&entry->flags, &flags, flags | ENTRY_LAYING)) {
            error = create_and_publish(entry);
            break;
        }
    }
    signals_release(&saved);
    errno = saved_errno;
    return error;
}

void layout_settle(struct map_entry *entry)
{
    int saved_errno = errno;
    int64_t deadline = now_ms() + CREATOR_GONE_MS;
    for (uint32_t flags; ((flags = atomic_load(&entry->flags)) & (ENTRY_LAYING | ENTRY_EVICTING)) != 0 && now_ms() < deadline;)
        map_sleep(&entry->flags, flags);
    errno = saved_errno;
}

int layout_directory(const char *path)
{
    struct segment_name first = {0};
    if (in_postmaster || !segment_path_directory(path, &first.spc, &first.db))
        return 0;
    for (uint32_t i = (uint32_t)map_lower_bound(&first); i < map->entry_count; i++) {
        struct map_entry *entry = &map_entries[i];
        if (entry->spc != first.spc || entry->db != first.db)
            break;
        int error = map_is_dropped(entry) ? 0 : layout_entry(entry);
        if (error != 0)
            return error;
    }
    return 0;
}

void layout_all(void)
{
    for (uint32_t i = 0; i < map->entry_count; i++)
        if (layout_entry(&map_entries[i]) != 0)
            shim_die("the data directory %s cannot be laid out", segment_path_datadir());
}
