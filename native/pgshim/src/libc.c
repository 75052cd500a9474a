/* Looks up the libc functions behind the ones we interpose. Resolving twice, from two threads, stores the same values. */
#define _GNU_SOURCE
#include "libc.h"

#include <dlfcn.h>

struct libc_calls real;

/* ISO C has no conversion from an object pointer to a function pointer; POSIX has it through the storage. */
#define RESOLVE(name) (*(void **)&real.name = dlsym(RTLD_NEXT, #name))

void libc_resolve_slow(void)
{
    RESOLVE(open);
    RESOLVE(openat);
    RESOLVE(close);
    RESOLVE(dup);
    RESOLVE(dup2);
    RESOLVE(dup3);
    RESOLVE(read);
    RESOLVE(readv);
    RESOLVE(pread);
    RESOLVE(preadv);
    RESOLVE(preadv2);
    RESOLVE(write);
    RESOLVE(writev);
    RESOLVE(pwrite);
    RESOLVE(pwritev);
    RESOLVE(pwritev2);
    RESOLVE(ftruncate);
    RESOLVE(truncate);
    RESOLVE(fallocate);
    RESOLVE(posix_fallocate);
    RESOLVE(posix_fadvise);
    RESOLVE(unlink);
    RESOLVE(link);
    RESOLVE(rename);
    RESOLVE(copy_file_range);
    RESOLVE(sendfile);
    /* Not every C library has all of these; a program can only call those it was linked with. */
    RESOLVE(stat);
    RESOLVE(lstat);
    RESOLVE(stat64);
    RESOLVE(lstat64);
    RESOLVE(__xstat);
    RESOLVE(__lxstat);
    RESOLVE(__xstat64);
    RESOLVE(__lxstat64);
    RESOLVE(access);
    RESOLVE(opendir);
    RESOLVE(fopen);
    RESOLVE(fdopen);
    RESOLVE(fileno);
    __atomic_store_n(&real.ready, true, __ATOMIC_RELEASE);
}
