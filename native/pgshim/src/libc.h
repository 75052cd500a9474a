/* The libc functions behind the ones we interpose.
 *
 * `real.pread(...)` is the next definition after ours in symbol search order. The table is filled by libc_resolve(), which every
 * wrapper calls first: other libraries' constructors may open files before ours has run. */
#ifndef PGSHIM_LIBC_H
#define PGSHIM_LIBC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/types.h>
#include <sys/uio.h>

struct libc_calls {
    int (*open)(const char *, int, ...);
    int (*openat)(int, const char *, int, ...);
    int (*close)(int);
    int (*dup)(int);
    int (*dup2)(int, int);
    int (*dup3)(int, int, int);
    ssize_t (*read)(int, void *, size_t);
    ssize_t (*readv)(int, const struct iovec *, int);
    ssize_t (*pread)(int, void *, size_t, off_t);
    ssize_t (*preadv)(int, const struct iovec *, int, off_t);
    ssize_t (*preadv2)(int, const struct iovec *, int, off_t, int);
    ssize_t (*write)(int, const void *, size_t);
    ssize_t (*writev)(int, const struct iovec *, int);
    ssize_t (*pwrite)(int, const void *, size_t, off_t);
    ssize_t (*pwritev)(int, const struct iovec *, int, off_t);
    ssize_t (*pwritev2)(int, const struct iovec *, int, off_t, int);
    int (*ftruncate)(int, off_t);
    int (*truncate)(const char *, off_t);
    int (*fallocate)(int, int, off_t, off_t);
    int (*posix_fallocate)(int, off_t, off_t);
    int (*posix_fadvise)(int, off_t, off_t, int);
    int (*unlink)(const char *);
    int (*link)(const char *, const char *);
    int (*rename)(const char *, const char *);
    ssize_t (*copy_file_range)(int, off_t *, int, off_t *, size_t, unsigned);
    ssize_t (*sendfile)(int, int, off_t *, size_t);
    int (*stat)(const char *, void *);
    int (*lstat)(const char *, void *);
    int (*stat64)(const char *, void *);
    int (*lstat64)(const char *, void *);
    int (*__xstat)(int, const char *, void *);
    int (*__lxstat)(int, const char *, void *);
    int (*__xstat64)(int, const char *, void *);
    int (*__lxstat64)(int, const char *, void *);
    int (*access)(const char *, int);
    void *(*opendir)(const char *);
    FILE *(*fopen)(const char *, const char *);
    FILE *(*fdopen)(int, const char *);
    int (*fileno)(FILE *);
    bool ready;
};

extern struct libc_calls real;

void libc_resolve_slow(void);

static inline void libc_resolve(void)
{
    if (__builtin_expect(!__atomic_load_n(&real.ready, __ATOMIC_ACQUIRE), 0))
        libc_resolve_slow();
}

#endif
