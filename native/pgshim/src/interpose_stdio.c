/* stdio: the C library's streams read and write without calling the functions we interpose, so a file below the data directory gets a stream of
 * our own that does. `fileno` of such a stream is the real descriptor: Postgres truncates and stats through it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "crypt.h"
#include "export.h"
#include "fd_table.h"
#include "libc.h"

/* Streams open at once: Postgres holds a handful. */
#define STREAMS_MAX 256

static _Atomic(FILE *) streams[STREAMS_MAX];
static _Atomic int stream_fds[STREAMS_MAX];

static _Atomic(FILE *) *slot_of(FILE *stream)
{
    for (int i = 0; i < STREAMS_MAX; i++)
        if (atomic_load_explicit(&streams[i], memory_order_acquire) == stream)
            return &streams[i];
    return NULL;
}

/* The cookie is the descriptor. */
static int fd_of(void *cookie)
{
    return (int)(intptr_t)cookie;
}

static ssize_t stream_read(void *cookie, char *to, size_t length)
{
    return read(fd_of(cookie), to, length);
}

/* 0 means an error here, and a short count ends the stream's attempt. */
static ssize_t stream_write(void *cookie, const char *from, size_t length)
{
    size_t done = 0;
    while (done < length) {
        ssize_t n = write(fd_of(cookie), from + done, length - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        done += (size_t)n;
    }
    return (ssize_t)done;
}

static int stream_seek(void *cookie, off64_t *offset, int whence)
{
    off_t at = lseek(fd_of(cookie), *offset, whence);
    if (at < 0)
        return -1;
    *offset = at;
    return 0;
}

static int stream_close(void *cookie)
{
    int fd = fd_of(cookie);
    for (int i = 0; i < STREAMS_MAX; i++)
        if (atomic_load(&streams[i]) != NULL && atomic_load(&stream_fds[i]) == fd)
            atomic_store(&streams[i], NULL);
    return close(fd);
}

static FILE *stream_over(int fd, const char *mode)
{
    static const cookie_io_functions_t calls = {stream_read, stream_write, stream_seek, stream_close};
    FILE *stream = fopencookie((void *)(intptr_t)fd, mode, calls);
    if (stream == NULL)
        return NULL;
    for (int i = 0; i < STREAMS_MAX; i++) {
        FILE *none = NULL;
        if (atomic_compare_exchange_strong(&streams[i], &none, stream)) {
            atomic_store(&stream_fds[i], fd);
            return stream;
        }
    }
    fclose(stream);
    errno = EMFILE;
    return NULL;
}

/* -1: not a mode. */
static int flags_of(const char *mode)
{
    int flags;
    switch (*mode) {
    case 'r':
        flags = O_RDONLY;
        break;
    case 'w':
        flags = O_WRONLY | O_CREAT | O_TRUNC;
        break;
    case 'a':
        flags = O_WRONLY | O_CREAT | O_APPEND;
        break;
    default:
        return -1;
    }
    if (strchr(mode, '+') != NULL)
        flags = (flags & ~O_ACCMODE) | O_RDWR;
    if (strchr(mode, 'e') != NULL)
        flags |= O_CLOEXEC;
    if (strchr(mode, 'x') != NULL)
        flags |= O_EXCL;
    return flags;
}

EXPORT FILE *fopen(const char *path, const char *mode)
{
    libc_resolve();
    int flags = flags_of(mode);
    if (flags == -1 || crypt_class(path) == CRYPT_PLAIN)
        return real.fopen(path, mode);
    int fd = open(path, flags, 0666);
    if (fd < 0)
        return NULL;
    if (fd_table_inode(fd) == 0) { /* not a regular file */
        FILE *plain = real.fdopen(fd, mode);
        if (plain == NULL)
            close(fd);
        return plain;
    }
    FILE *stream = stream_over(fd, mode);
    if (stream == NULL && fd_table_inode(fd) != 0)
        close(fd);
    return stream;
}

EXPORT FILE *fdopen(int fd, const char *mode)
{
    libc_resolve();
    return fd_table_inode(fd) == 0 ? real.fdopen(fd, mode) : stream_over(fd, mode);
}

EXPORT int fileno(FILE *stream)
{
    libc_resolve();
    _Atomic(FILE *) *slot = stream == NULL ? NULL : slot_of(stream);
    return slot == NULL ? real.fileno(stream) : atomic_load(&stream_fds[slot - streams]);
}

EXPORT_ALIAS(fopen, fopen64);
EXPORT_ALIAS(fileno, fileno_unlocked);
