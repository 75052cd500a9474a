/* The interposed calls on names and lengths: open, close, dup, truncate, unlink, rename, allocation. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache.h"
#include "crypt.h"
#include "export.h"
#include "fault.h"
#include "fd_table.h"
#include "gate.h"
#include "layout.h"
#include "libc.h"
#include "segment_path.h"
#include "wal.h"

/* Names whose old file is gone: whatever has that name later is local. */

static struct map_entry *tracked(const char *path)
{
    libc_resolve();
    int32_t index = segment_path_entry(path);
    if (index < 0)
        return NULL;
    if (likely(!map_is_dropped(&map_entries[index])))
        return &map_entries[index];
    layout_settle(&map_entries[index]);
    return NULL;
}

/* True when this call is the one that set the flag. */
static bool drop(struct map_entry *entry)
{
    if (entry == NULL || (atomic_fetch_or(&entry->flags, ENTRY_DROPPED) & ENTRY_DROPPED) != 0)
        return false;
    layout_settle(entry);
    map_clean_less(map_count_clean(entry));
    return true;
}

static void undo_drop(struct map_entry *entry, bool dropped)
{
    if (dropped && errno != ENOENT)
        atomic_fetch_and(&entry->flags, ~ENTRY_DROPPED);
}

/* Opening */

#define NEEDS_MODE(flags) (((flags) & O_CREAT) != 0 || ((flags) & O_TMPFILE) == O_TMPFILE)

/* Faults write into the file, so a read-only descriptor is opened for both; the caller sees no difference but that writing works. */
static int open_writable(int directory, const char *path, int flags, mode_t mode)
{
    if ((flags & O_ACCMODE) == O_RDONLY) {
        int fd = real.openat(directory, path, (flags & ~O_ACCMODE) | O_RDWR, mode);
        if (fd >= 0 || (errno != EACCES && errno != EROFS && errno != EPERM))
            return fd;
    }
    return real.openat(directory, path, flags, mode);
}

/* The truncation in O_TRUNC follows the rules of ftruncate. */
static int open_truncating(struct map_entry *entry, int directory, const char *path, int flags, mode_t mode)
{
    struct truncate_claim claim;
    int error = fault_begin_truncate(&claim, entry, -1, 0);
    if (error != 0) {
        errno = error;
        return -1;
    }
    int fd = open_writable(directory, path, flags, mode);
    fault_end_truncate(&claim, fd >= 0);
    return fd;
}

static int open_tracked(struct map_entry *entry, int directory, const char *path, int flags, mode_t mode)
{
    int error = layout_entry(entry);
    if (error != 0) {
        errno = error;
        return -1;
    }
    int fd = (flags & O_TRUNC) != 0 ? open_truncating(entry, directory, path, flags, mode) : open_writable(directory, path, flags, mode);
    if (fd < 0)
        return fd;
    if ((flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL)) {
        drop(entry); /* the file storage knows was not there any more */
        fd_table_set(fd, 0);
        return fd;
    }
    if (fd >= FD_TABLE_SIZE) {
        real.close(fd);
        errno = EMFILE;
        return -1;
    }
    fd_table_set(fd, (int32_t)(entry - map_entries) + 1);
    return fd;
}

/* Without an entry when it was looked up: one of a main fork may get one later, or has just got it. */
static int open_local(int directory, const char *path, const char *name, int flags, mode_t mode, uint32_t looked)
{
    struct segment_name segment;
    int fd = real.openat(directory, path, flags, mode);
    fd_table_set(fd, wal_mark(name));
    if (segment_path_name(name, &segment) && segment.fork == 0) {
        int32_t index = map_find(&segment);
        if (index < 0 || !map_is_dropped(&map_entries[index]))
            fd_table_set_name(fd, &segment, looked);
    }
    return fd;
}

static int open_as(int directory, const char *path, const char *name, int flags, mode_t mode)
{
    uint32_t looked = map == NULL ? 0 : atomic_load(&map->added);
    struct map_entry *entry = tracked(name);
    enum crypt_class class = crypt_class(name);
    int with = crypt_open_flags(class, flags);
    if (with == -1)
        return -1;
    int fd = entry != NULL ? open_tracked(entry, directory, path, with, mode) : open_local(directory, path, name, with, mode, looked);
    return crypt_opened(fd, class, flags);
}

/* `path` from `directory` is what the kernel gets, `name` says which file that is (NULL: not ours). */
static int open_named(int directory, const char *path, const char *name, int flags, mode_t mode)
{
    if ((flags & O_TRUNC) == 0)
        return open_as(directory, path, name, flags, mode);
    gate_enter();
    int fd = open_as(directory, path, name, flags, mode);
    gate_leave();
    return fd;
}

static int open_any(int directory, const char *path, int flags, mode_t mode)
{
    libc_resolve();
    return open_named(directory, path, directory == AT_FDCWD || (path != NULL && path[0] == '/') ? path : NULL, flags, mode);
}

/* Relative to a directory descriptor: Postgres never does, the tools it runs (cp, tar) do. The name is made absolute first. */
static int open_below(int directory, const char *path, int flags, mode_t mode)
{
    char absolute[PATH_MAX];
    char link[32];
    if (map == NULL || directory == AT_FDCWD || path == NULL || path[0] == '/' || (path[0] != '.' && strlen(path) > NAME_MAX))
        return open_any(directory, path, flags, mode);
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    ssize_t length = readlink(link, absolute, sizeof absolute - 1);
    errno = saved;
    if (length <= 0 || (size_t)length + strlen(path) + 2 > sizeof absolute)
        return open_any(directory, path, flags, mode);
    absolute[length] = '/';
    strcpy(absolute + length + 1, path);
    return open_named(directory, path, absolute, flags, mode);
}

#define MODE_ARGUMENT(flags, mode)        \
    mode_t mode = 0;                      \
    if (NEEDS_MODE(flags)) {              \
        va_list arguments;                \
        va_start(arguments, flags);       \
        mode = va_arg(arguments, mode_t); \
        va_end(arguments);                \
    }

EXPORT int open(const char *path, int flags, ...)
{
    MODE_ARGUMENT(flags, mode);
    return open_any(AT_FDCWD, path, flags, mode);
}

EXPORT int openat(int directory, const char *path, int flags, ...)
{
    MODE_ARGUMENT(flags, mode);
    libc_resolve();
    return open_below(directory, path, flags, mode);
}

EXPORT int creat(const char *path, mode_t mode)
{
    return open_any(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

/* Names the compiler uses with _FORTIFY_SOURCE, where no mode is given. */
EXPORT int __open_2(const char *path, int flags)
{
    return open_any(AT_FDCWD, path, flags, 0);
}

EXPORT int __openat_2(int directory, const char *path, int flags)
{
    libc_resolve();
    return open_below(directory, path, flags, 0);
}

EXPORT_ALIAS(open, open64);
EXPORT_ALIAS(openat, openat64);
EXPORT_ALIAS(creat, creat64);
extern __typeof(__open_2) __open64_2 __attribute__((alias("__open_2"), visibility("default")));
extern __typeof(__openat_2) __openat64_2 __attribute__((alias("__openat_2"), visibility("default")));

/* Descriptors */

EXPORT int close(int fd)
{
    libc_resolve();
    fd_table_forget(fd); /* first: after the real call the number may already be another thread's */
    return real.close(fd);
}

EXPORT int dup(int fd)
{
    libc_resolve();
    int copy = real.dup(fd);
    fd_table_copy(fd, copy);
    return copy;
}

EXPORT int dup2(int fd, int to)
{
    libc_resolve();
    int copy = real.dup2(fd, to);
    if (copy >= 0)
        fd_table_copy(fd, copy);
    return copy;
}

EXPORT int dup3(int fd, int to, int flags)
{
    libc_resolve();
    int copy = real.dup3(fd, to, flags);
    if (copy >= 0)
        fd_table_copy(fd, copy);
    return copy;
}

/* Lengths */

static int truncate_segment(int fd, off_t length)
{
    struct map_entry *entry = fd_table_entry(fd);
    if (entry == NULL)
        return crypt_ftruncate(fd, length);
    struct truncate_claim claim;
    int error = fault_begin_truncate(&claim, entry, fd, length);
    if (error != 0) {
        errno = error;
        return -1;
    }
    int result = crypt_ftruncate(fd, length);
    fault_end_truncate(&claim, result == 0);
    return result;
}

EXPORT int ftruncate(int fd, off_t length)
{
    libc_resolve();
    if (!fd_table_is_segment(fd))
        return crypt_ftruncate(fd, length);
    gate_enter();
    int result = truncate_segment(fd, length);
    gate_leave();
    return result;
}

EXPORT int truncate(const char *path, off_t length)
{
    if (tracked(path) == NULL && crypt_class(path) == CRYPT_PLAIN)
        return real.truncate(path, length);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return -1;
    int result = ftruncate(fd, length);
    int saved = errno;
    close(fd);
    errno = saved;
    return result;
}

/* Plain allocation changes no byte below the length; anything else (punching, zeroing, collapsing) would have to follow the rules of
 * writes, and Postgres does not use it. */
EXPORT int fallocate(int fd, int mode, off_t offset, off_t length)
{
    libc_resolve();
    if ((mode & ~FALLOC_FL_KEEP_SIZE) != 0 && (fd_table_entry(fd) != NULL || fd_table_inode(fd) != 0)) {
        errno = EOPNOTSUPP;
        return -1;
    }
    int error = (mode & FALLOC_FL_KEEP_SIZE) == 0 && offset >= 0 && length > 0 ? crypt_grow(fd, offset + length) : 0;
    if (error != 0) {
        errno = error;
        return -1;
    }
    int result;
    do
        result = real.fallocate(fd, mode, offset, length);
    while (unlikely(result != 0 && cache_is_full(errno) && length > 0 && cache_make_room((size_t)length)));
    return result;
}

EXPORT int posix_fallocate(int fd, off_t offset, off_t length)
{
    libc_resolve();
    int error = offset >= 0 && length > 0 ? crypt_grow(fd, offset + length) : 0;
    if (error != 0)
        return error;
    do
        error = real.posix_fallocate(fd, offset, length);
    while (unlikely(cache_is_full(error) && length > 0 && cache_make_room((size_t)length)));
    return error;
}

/* Advice about absent blocks would read holes into the page cache. */
EXPORT int posix_fadvise(int fd, off_t offset, off_t length, int advice)
{
    libc_resolve();
    struct map_entry *entry = fd_table_entry(fd);
    if (entry != NULL && advice == POSIX_FADV_WILLNEED && length > 0) {
        struct block_range range = tracked_blocks(entry, offset, (size_t)length);
        if (!map_all_resident(entry, range.first, range.end))
            return 0;
    }
    return real.posix_fadvise(fd, offset, length, advice);
}

EXPORT_ALIAS(ftruncate, ftruncate64);
EXPORT_ALIAS(truncate, truncate64);
EXPORT_ALIAS(fallocate, fallocate64);
EXPORT_ALIAS(posix_fallocate, posix_fallocate64);
EXPORT_ALIAS(posix_fadvise, posix_fadvise64);

/* Names */

static int unlink_gated(const char *path)
{
    struct map_entry *entry = tracked(path);
    bool dropped = drop(entry);
    int saved = errno;
    int result = real.unlink(path);
    if (result != 0 && errno == ENOENT && dropped && (atomic_load(&entry->flags) & ENTRY_LAID) == 0) {
        errno = saved; /* the file was there in all but name */
        return 0;
    }
    if (result != 0)
        undo_drop(entry, dropped);
    return result;
}

EXPORT int unlink(const char *path)
{
    gate_enter();
    int result = unlink_gated(path);
    gate_leave();
    return result;
}

/* Everything a file is must be in it before it goes by a name the map does not know. */
static int fault_whole_file(const char *path, struct map_entry *entry)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? 0 : errno;
    struct read_guard guard;
    int error = fault_before_read(&guard, entry, fd, 0, (size_t)map_nblocks(entry) * BLCKSZ);
    close(fd);
    return error;
}

/* From ciphertext to plaintext or back: as between two file systems, the bytes have to be copied. */
static bool crosses_border(const char *from, const char *to)
{
    if ((crypt_class(from) == CRYPT_PLAIN) == (crypt_class(to) == CRYPT_PLAIN))
        return false;
    errno = EXDEV;
    return true;
}

EXPORT int link(const char *from, const char *to)
{
    libc_resolve();
    return crosses_border(from, to) ? -1 : real.link(from, to);
}

static int rename_gated(const char *from, const char *to)
{
    struct map_entry *source = tracked(from);
    struct map_entry *target = tracked(to);
    if (source != NULL) {
        int error = map_hold(source); /* so that it stays resident until nobody tracks it any more */
        if (error == 0 && (error = fault_whole_file(from, source)) != 0)
            map_release(source);
        if (error != 0) {
            errno = error;
            return -1;
        }
    }
    bool target_dropped = drop(target);
    int result = real.rename(from, to);
    int saved = errno;
    if (result == 0)
        drop(source);
    else if (target_dropped)
        atomic_fetch_and(&target->flags, ~ENTRY_DROPPED);
    if (source != NULL)
        map_release(source);
    errno = saved;
    return result;
}

EXPORT int rename(const char *from, const char *to)
{
    if (crosses_border(from, to))
        return -1;
    gate_enter();
    int result = rename_gated(from, to);
    gate_leave();
    return result;
}
