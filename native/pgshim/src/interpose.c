/* The interposed read and write calls: each asks the fd table whether the descriptor is a segment, does what fault.h says before and
 * after, and calls crypt.h, which is libc with encryption below the data directory. Calls on everything else cost two array reads. Opening,
 * renaming and truncating are in interpose_files.c. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/uio.h>
#include <unistd.h>

#include "cache.h"
#include "crypt.h"
#include "export.h"
#include "fault.h"
#include "fd_table.h"
#include "libc.h"
#include "wal.h"

#define COPY_PIECE ((size_t)16 * BLCKSZ)

static bool is_segment(int fd)
{
    libc_resolve();
    return fd_table_is_segment(fd);
}

static size_t vector_length(const struct iovec *vector, int count)
{
    size_t length = 0;
    for (int i = 0; i < count; i++)
        length += vector[i].iov_len;
    return length;
}

/* Where a call without an offset reads; -1 lets libc report what is wrong. */
static off_t position_of(int fd)
{
    int saved = errno;
    off_t at = lseek(fd, 0, SEEK_CUR);
    errno = saved;
    return at;
}

/* Where a call without an offset writes. */
static off_t write_position_of(int fd)
{
    int saved = errno;
    int flags = fcntl(fd, F_GETFL);
    off_t at;
    if ((flags >= 0 && (flags & O_APPEND) != 0) || (fd_table_inode(fd) != 0 && (fd_table_flags(fd) & FD_APPEND) != 0)) {
        off_t here = lseek(fd, 0, SEEK_CUR);
        at = lseek(fd, 0, SEEK_END);
        lseek(fd, here, SEEK_SET);
    } else {
        at = lseek(fd, 0, SEEK_CUR);
    }
    errno = saved;
    return at;
}

static bool read_fails(struct read_guard *guard, struct map_entry *entry, int fd, off_t offset, size_t length)
{
    int error = fault_before_read(guard, entry, fd, offset, length);
    if (likely(error == 0))
        return false;
    errno = error;
    return true;
}

/* Reads */

static ssize_t tracked_preadv(struct map_entry *entry, int fd, const struct iovec *vector, int count, off_t offset)
{
    struct read_guard guard;
    size_t length = vector_length(vector, count);
    for (;;) {
        if (unlikely(read_fails(&guard, entry, fd, offset, length)))
            return cache_is_full(errno) && offset >= 0 ? fault_read_past(entry, fd, vector, count, offset) : -1;
        if (fault_read_buffered(entry, vector, offset, length))
            return (ssize_t)length;
        ssize_t got = count == 1 ? crypt_pread(fd, vector->iov_base, length, offset) : crypt_preadv(fd, vector, count, offset);
        if (fault_read_holds(&guard, entry))
            return got;
    }
}

static ssize_t segment_preadv(int fd, const struct iovec *vector, int count, off_t offset)
{
    for (;;) {
        struct map_entry *entry = fd_table_entry(fd);
        if (entry != NULL)
            return tracked_preadv(entry, fd, vector, count, offset);
        ssize_t got = count == 1 ? crypt_pread(fd, vector->iov_base, vector->iov_len, offset) : crypt_preadv(fd, vector, count, offset);
        if (fd_table_holds(fd))
            return got; /* else it may have been adopted, and blocks of it dropped, under the read */
    }
}

/* At the file's position, which moves once, however often the bytes are read. */
static ssize_t segment_readv(int fd, const struct iovec *vector, int count)
{
    off_t at = position_of(fd);
    if (at < 0)
        return real.readv(fd, vector, count); /* which says why */
    ssize_t got = segment_preadv(fd, vector, count, at);
    if (got > 0)
        lseek(fd, at + got, SEEK_SET);
    return got;
}

EXPORT ssize_t read(int fd, void *to, size_t length)
{
    if (unlikely(is_segment(fd)))
        return segment_readv(fd, &(struct iovec){to, length}, 1);
    return crypt_read(fd, to, length);
}

EXPORT ssize_t readv(int fd, const struct iovec *vector, int count)
{
    return unlikely(is_segment(fd)) ? segment_readv(fd, vector, count) : crypt_readv(fd, vector, count);
}

EXPORT ssize_t pread(int fd, void *to, size_t length, off_t offset)
{
    return is_segment(fd) ? segment_preadv(fd, &(struct iovec){to, length}, 1, offset) : crypt_pread(fd, to, length, offset);
}

EXPORT ssize_t preadv(int fd, const struct iovec *vector, int count, off_t offset)
{
    return is_segment(fd) ? segment_preadv(fd, vector, count, offset) : crypt_preadv(fd, vector, count, offset);
}

EXPORT ssize_t preadv2(int fd, const struct iovec *vector, int count, off_t offset, int flags)
{
    if (is_segment(fd) || fd_table_inode(fd) != 0) /* the flags are hints, or about durability, which scratch does not have */
        return offset == -1 ? readv(fd, vector, count) : preadv(fd, vector, count, offset);
    return real.preadv2(fd, vector, count, offset, flags);
}

/* Compiled-in length checks (_FORTIFY_SOURCE) come through these names. */
extern void __chk_fail(void) __attribute__((noreturn));

EXPORT ssize_t __read_chk(int fd, void *to, size_t length, size_t room)
{
    if (length > room)
        __chk_fail();
    return read(fd, to, length);
}

EXPORT ssize_t __pread_chk(int fd, void *to, size_t length, off_t offset, size_t room)
{
    if (length > room)
        __chk_fail();
    return pread(fd, to, length, offset);
}

/* Writes */

static bool write_fails(struct write_claim *claim, int fd, off_t offset, size_t length)
{
    int error = fault_begin_write(claim, fd, offset, length);
    if (likely(error == 0))
        return false;
    errno = error;
    return true;
}

/* After a write at the file position whose result was cut short, the position must agree with the result. */
static ssize_t end_positioned_write(struct write_claim *claim, int fd, off_t offset, ssize_t result)
{
    ssize_t reported = fault_end_write(claim, result);
    if (reported != result) {
        int saved = errno;
        lseek(fd, offset + (reported > 0 ? reported : 0), SEEK_SET);
        errno = saved;
    }
    return reported;
}

EXPORT ssize_t write(int fd, const void *from, size_t length)
{
    if (likely(!is_segment(fd)))
        return crypt_write(fd, from, length);
    struct write_claim claim;
    off_t offset = write_position_of(fd);
    if (write_fails(&claim, fd, offset, length))
        return -1;
    return end_positioned_write(&claim, fd, offset, crypt_write(fd, from, length));
}

EXPORT ssize_t writev(int fd, const struct iovec *vector, int count)
{
    if (likely(!is_segment(fd)))
        return crypt_writev(fd, vector, count);
    struct write_claim claim;
    off_t offset = write_position_of(fd);
    if (write_fails(&claim, fd, offset, vector_length(vector, count)))
        return -1;
    return end_positioned_write(&claim, fd, offset, crypt_writev(fd, vector, count));
}

EXPORT ssize_t pwrite(int fd, const void *from, size_t length, off_t offset)
{
    if (!is_segment(fd)) {
        int32_t mark = fd_table_get(fd);
        return mark < 0 ? wal_pwrite(fd, mark, from, length, offset) : crypt_pwrite(fd, from, length, offset);
    }
    struct write_claim claim;
    if (write_fails(&claim, fd, offset, length))
        return -1;
    return fault_end_write(&claim, crypt_pwrite(fd, from, length, offset));
}

EXPORT ssize_t pwritev(int fd, const struct iovec *vector, int count, off_t offset)
{
    if (!is_segment(fd))
        return crypt_pwritev(fd, vector, count, offset);
    struct write_claim claim;
    if (write_fails(&claim, fd, offset, vector_length(vector, count)))
        return -1;
    return fault_end_write(&claim, crypt_pwritev(fd, vector, count, offset));
}

EXPORT ssize_t pwritev2(int fd, const struct iovec *vector, int count, off_t offset, int flags)
{
    if (is_segment(fd) || fd_table_inode(fd) != 0) /* as for reads */
        return offset == -1 ? writev(fd, vector, count) : pwritev(fd, vector, count, offset);
    return real.pwritev2(fd, vector, count, offset, flags);
}

/* Copies inside the kernel */

/* Two encrypted files have two tweaks, so their bytes go through plaintext; of a tracked file blocks may be absent, or be dropped meanwhile. One
 * piece: callers of both functions go on after a short count. */
static ssize_t copy_through_memory(int in, off_t *in_offset, int out, off_t *out_offset, size_t length)
{
    static _Thread_local char bytes[COPY_PIECE];
    off_t from = in_offset != NULL ? *in_offset : position_of(in);
    ssize_t n = pread(in, bytes, length < sizeof bytes ? length : sizeof bytes, from);
    if (n <= 0)
        return n;
    n = out_offset != NULL ? pwrite(out, bytes, (size_t)n, *out_offset) : write(out, bytes, (size_t)n);
    if (n <= 0)
        return n;
    if (in_offset != NULL)
        *in_offset += n;
    else
        lseek(in, from + n, SEEK_SET);
    if (out_offset != NULL)
        *out_offset += n;
    return n;
}

EXPORT ssize_t copy_file_range(int in, off_t *in_offset, int out, off_t *out_offset, size_t length, unsigned flags)
{
    if (is_segment(in) || is_segment(out) || fd_table_inode(in) != 0 || fd_table_inode(out) != 0)
        return copy_through_memory(in, in_offset, out, out_offset, length);
    return real.copy_file_range(in, in_offset, out, out_offset, length, flags);
}

EXPORT ssize_t sendfile(int out, int in, off_t *offset, size_t length)
{
    if (is_segment(in) || fd_table_inode(in) != 0 || fd_table_inode(out) != 0)
        return copy_through_memory(in, offset, out, NULL, length);
    return real.sendfile(out, in, offset, length);
}

/* off_t is 64 bits wide on the machines we build for: the names for large files are the same functions. */
_Static_assert(sizeof(off_t) == 8, "64-bit file offsets");
EXPORT_ALIAS(pread, pread64);
EXPORT_ALIAS(preadv, preadv64);
EXPORT_ALIAS(preadv2, preadv64v2);
EXPORT_ALIAS(__pread_chk, __pread64_chk);
EXPORT_ALIAS(pwrite, pwrite64);
EXPORT_ALIAS(pwritev, pwritev64);
EXPORT_ALIAS(pwritev2, pwritev64v2);
EXPORT_ALIAS(sendfile, sendfile64);
