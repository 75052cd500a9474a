/* The interposed calls that look at names without opening them. A segment file that was not laid out yet is, before anybody can miss it:
 * sizes are taken with stat, CREATE DATABASE … FILE_COPY and base backups list directories. */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>

#include "export.h"
#include "layout.h"
#include "libc.h"
#include "segment_path.h"

static bool lookup_fails(const char *path)
{
    libc_resolve();
    int32_t index = segment_path_entry(path);
    int error = 0;
    if (index >= 0 && !map_is_dropped(&map_entries[index]))
        error = layout_entry(&map_entries[index]);
    else if (index >= 0)
        layout_settle(&map_entries[index]);
    if (error != 0)
        errno = error;
    return error != 0;
}

/* The C library's headers are left out on purpose: they declare these names with types that differ between its versions. */
#define LOOKUP(name)                                            \
    EXPORT int name(const char *path, void *to);                \
    EXPORT int name(const char *path, void *to)                 \
    {                                                           \
        return lookup_fails(path) ? -1 : real.name(path, to);   \
    }

#define VERSIONED_LOOKUP(name)                                            \
    EXPORT int name(int version, const char *path, void *to);             \
    EXPORT int name(int version, const char *path, void *to)              \
    {                                                                     \
        return lookup_fails(path) ? -1 : real.name(version, path, to);    \
    }

LOOKUP(stat)
LOOKUP(lstat)
LOOKUP(stat64)
LOOKUP(lstat64)
VERSIONED_LOOKUP(__xstat)
VERSIONED_LOOKUP(__lxstat)
VERSIONED_LOOKUP(__xstat64)
VERSIONED_LOOKUP(__lxstat64)

EXPORT int access(const char *path, int mode);
EXPORT int access(const char *path, int mode)
{
    return lookup_fails(path) ? -1 : real.access(path, mode);
}

EXPORT void *opendir(const char *path);
EXPORT void *opendir(const char *path)
{
    libc_resolve();
    int error = layout_directory(path);
    if (error != 0) {
        errno = error;
        return NULL;
    }
    return real.opendir(path);
}
