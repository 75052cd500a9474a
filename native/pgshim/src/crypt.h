/* Encrypted file calls: the same as libc's on plaintext, for descriptors of files below the data directory; others pass through.
 * They are what the fault logic and the interposed functions call in place of libc. */
#ifndef PGSHIM_CRYPT_H
#define PGSHIM_CRYPT_H

#include <stdbool.h>
#include <sys/types.h>
#include <sys/uio.h>

enum crypt_mode {
    CRYPT_OFF,    /* no compute, or the test switch: nothing is encrypted */
    CRYPT_ON,
    CRYPT_LOCKED, /* a program Postgres executed: it has no key, so files below the data directory do not open */
};

void crypt_set_mode(enum crypt_mode mode);

/* Opening: what a name means, the flags to open it with, and what to do with the descriptor (which is returned, or closed and -1). */
enum crypt_class { CRYPT_PLAIN, CRYPT_FILE, CRYPT_SHARED_FILE };
enum crypt_class crypt_class(const char *path);
/* -1 with errno when this process may not open it that way at all. */
int crypt_open_flags(enum crypt_class class, int flags);
int crypt_opened(int fd, enum crypt_class class, int flags);

ssize_t crypt_read(int fd, void *to, size_t length);
ssize_t crypt_readv(int fd, const struct iovec *vector, int count);
ssize_t crypt_pread(int fd, void *to, size_t length, off_t offset);
ssize_t crypt_preadv(int fd, const struct iovec *vector, int count, off_t offset);
ssize_t crypt_write(int fd, const void *from, size_t length);
ssize_t crypt_writev(int fd, const struct iovec *vector, int count);
ssize_t crypt_pwrite(int fd, const void *from, size_t length, off_t offset);
ssize_t crypt_pwritev(int fd, const struct iovec *vector, int count, off_t offset);
int crypt_ftruncate(int fd, off_t length);
/* Before bytes up to `end` are allocated: a file that grows is grown by the rules of its tail. 0 or an errno. */
int crypt_grow(int fd, off_t end);

#endif
