/* Encrypted file calls. Format and locking: docs/formats/scratch-encryption.md.
 *
 * Invariants
 * - What a file's bytes mean follows from its length alone: whole blocks are XTS, a last part of a block is a tail. Whoever changes the length
 *   re-encodes the block where the old or the new one ends, under the file's lock.
 * - Every step in between leaves a readable file: growth goes through lengths that are multiples of 16.
 * - A short write counts whole blocks only, so no block holds bytes of two versions. */
#define _GNU_SOURCE
#include "crypt.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache.h"
#include "fd_table.h"
#include "libc.h"
#include "segment_path.h"
#include "util.h"
#include "xts.h"

#define WINDOW ((size_t)16 * XTS_UNIT) /* what one real write carries at most */
#define LOCK_BYTE ((off_t)1 << 62)
#define ROUND_DOWN(n) ((n) & ~(off_t)(XTS_BLOCK - 1))
#define ROUND_UP(n) ROUND_DOWN((n) + (off_t)XTS_BLOCK - 1)
#define IN_BLOCK(n) ((size_t)(n) % XTS_BLOCK)

static enum crypt_mode mode;

void crypt_set_mode(enum crypt_mode to)
{
    mode = to;
}

/* Opening */

enum crypt_class crypt_class(const char *path)
{
    if (likely(mode == CRYPT_OFF))
        return CRYPT_PLAIN;
    const char *relative = segment_path_below(path);
    if (relative == NULL || strcmp(relative, "postmaster.pid") == 0)
        return CRYPT_PLAIN;
    bool shared = strncmp(relative, "pg_wal/", 7) == 0 || strncmp(relative, "pg_stat_tmp/", 12) == 0;
    return shared ? CRYPT_SHARED_FILE : CRYPT_FILE;
}

int crypt_open_flags(enum crypt_class class, int flags)
{
    if (class == CRYPT_PLAIN)
        return flags;
    if (mode == CRYPT_LOCKED && ((flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)) != 0)) {
        errno = EACCES;
        return -1;
    }
    /* Blocks at the edges of a write are read first; the kernel's own idea of appending ignores the offset of pwrite. */
    if ((flags & O_ACCMODE) == O_WRONLY)
        flags = (flags & ~O_ACCMODE) | O_RDWR;
    return flags & ~(O_APPEND | O_DIRECT);
}

static int refuse(int fd, int error)
{
    fd_table_forget(fd);
    real.close(fd);
    errno = error;
    return -1;
}

int crypt_opened(int fd, enum crypt_class class, int flags)
{
    struct stat st;
    if (fd < 0)
        return fd;
    fd_table_set_encrypted(fd, 0, 0);
    if (class == CRYPT_PLAIN)
        return fd;
    int saved = errno;
    if (fstat(fd, &st) != 0)
        return refuse(fd, errno);
    errno = saved;
    if (!S_ISREG(st.st_mode))
        return fd;
    if (mode == CRYPT_LOCKED)
        return refuse(fd, EACCES);
    if (fd >= FD_TABLE_SIZE)
        return refuse(fd, EMFILE);
    if (st.st_ino == 0) {
        shim_log("the file system of the data directory numbers no inodes: nothing can be encrypted there");
        return refuse(fd, ENOTSUP);
    }
    uint8_t kept = (uint8_t)((class == CRYPT_SHARED_FILE ? FD_LOCKED : 0) | ((flags & O_APPEND) != 0 ? FD_APPEND : 0));
    fd_table_set_encrypted(fd, (uint64_t)st.st_ino, kept);
    return fd;
}

/* Helpers: the file's lock, its length, this thread's window */

static int lock(int fd, short type)
{
    struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = LOCK_BYTE, .l_len = 1};
    int saved = errno;
    while (fcntl(fd, F_OFD_SETLKW, &l) != 0)
        if (errno != EINTR)
            return -1;
    errno = saved;
    return 0;
}

static void unlock(int fd)
{
    int saved = errno;
    lock(fd, F_UNLCK);
    errno = saved;
}

/* -1 with errno. */
static off_t length_of(int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 ? st.st_size : -1;
}

static unsigned char *window(void)
{
    static _Thread_local unsigned char *mapped;
    if (unlikely(mapped == NULL)) {
        void *at = mmap(NULL, WINDOW, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED)
            return NULL;
        mapped = at;
    }
    return mapped;
}

static bool failed(int error)
{
    if (likely(error == 0))
        return false;
    errno = error;
    return true;
}

static size_t vector_length(const struct iovec *vector, int count)
{
    size_t length = 0;
    for (int i = 0; i < count; i++)
        length += vector[i].iov_len;
    return length;
}

static bool in_multiples(const struct iovec *vector, int count, off_t offset, size_t multiple)
{
    size_t all = (size_t)offset;
    for (int i = 0; i < count; i++)
        all |= vector[i].iov_len;
    return all % multiple == 0;
}

/* Reading */

/* Decodes `length` bytes from `offset` (a multiple of 16) on; what is over a multiple of 16 is the file's tail. */
static int decode(uint64_t inode, off_t offset, unsigned char *bytes, size_t length)
{
    size_t over = IN_BLOCK(length);
    int error = xts_decrypt(inode, offset, bytes, length - over);
    return error != 0 || over == 0 ? error : xts_tail(inode, offset + (off_t)(length - over), bytes + length - over, over);
}

static int encode(uint64_t inode, off_t offset, unsigned char *bytes, size_t length)
{
    size_t over = IN_BLOCK(length);
    int error = xts_encrypt(inode, offset, bytes, bytes, length - over);
    return error != 0 || over == 0 ? error : xts_tail(inode, offset + (off_t)(length - over), bytes + length - over, over);
}

/* Any offset and length, under the lock. */
static ssize_t read_locked(int fd, uint64_t inode, char *to, size_t length, off_t offset)
{
    unsigned char *bytes = window();
    size_t done = 0;
    if (bytes == NULL)
        return -1;
    while (done < length) {
        off_t at = offset + (off_t)done, start = ROUND_DOWN(at);
        off_t end = ROUND_UP(offset + (off_t)length);
        size_t want = (size_t)(end - start) < WINDOW ? (size_t)(end - start) : WINDOW;
        ssize_t got = real.pread(fd, bytes, want, start);
        if (got < 0 || (got > 0 && failed(decode(inode, start, bytes, (size_t)got))))
            return done > 0 ? (ssize_t)done : -1;
        if (start + got <= at)
            break;
        size_t n = (size_t)(start + got - at) < length - done ? (size_t)(start + got - at) : length - done;
        memcpy(to + done, bytes + (at - start), n);
        done += n;
        if ((size_t)got < want)
            break;
    }
    return (ssize_t)done;
}

static ssize_t readv_any(int fd, uint64_t inode, const struct iovec *vector, int count, off_t offset)
{
    ssize_t done = 0;
    if (offset < 0 || count < 0) {
        errno = EINVAL;
        return -1;
    }
    if (lock(fd, F_RDLCK) != 0)
        return -1;
    for (int i = 0; i < count; i++) {
        ssize_t n = read_locked(fd, inode, vector[i].iov_base, vector[i].iov_len, offset + done);
        if (n < 0 && done == 0)
            done = -1;
        else if (n > 0)
            done += n;
        if (n < (ssize_t)vector[i].iov_len)
            break;
    }
    unlock(fd);
    return done;
}

ssize_t crypt_preadv(int fd, const struct iovec *vector, int count, off_t offset)
{
    uint64_t inode = fd_table_inode(fd);
    if (inode == 0)
        return real.preadv(fd, vector, count, offset);
    if (unlikely((fd_table_flags(fd) & FD_LOCKED) != 0 || offset < 0 || !in_multiples(vector, count, offset, XTS_UNIT)))
        return readv_any(fd, inode, vector, count, offset);
    ssize_t got = count == 1 ? real.pread(fd, vector->iov_base, vector->iov_len, offset) : real.preadv(fd, vector, count, offset);
    if (got <= 0)
        return got;
    if (unlikely(IN_BLOCK(got) != 0))
        return readv_any(fd, inode, vector, count, offset); /* ends in a tail, which may be growing */
    off_t at = offset;
    for (ssize_t left = got; left > 0; vector++) {
        size_t n = (size_t)left < vector->iov_len ? (size_t)left : vector->iov_len;
        if (failed(xts_decrypt(inode, at, vector->iov_base, n)))
            return -1;
        at += (off_t)n;
        left -= (ssize_t)n;
    }
    return got;
}

ssize_t crypt_pread(int fd, void *to, size_t length, off_t offset)
{
    if (fd_table_inode(fd) == 0)
        return real.pread(fd, to, length, offset);
    return crypt_preadv(fd, &(struct iovec){to, length}, 1, offset);
}

static ssize_t advanced(int fd, off_t from, ssize_t result)
{
    if (result > 0)
        lseek(fd, from + result, SEEK_SET);
    return result;
}

ssize_t crypt_readv(int fd, const struct iovec *vector, int count)
{
    if (fd_table_inode(fd) == 0)
        return real.readv(fd, vector, count);
    off_t at = lseek(fd, 0, SEEK_CUR);
    return at < 0 ? -1 : advanced(fd, at, crypt_preadv(fd, vector, count, at));
}

ssize_t crypt_read(int fd, void *to, size_t length)
{
    if (likely(fd_table_inode(fd) == 0))
        return real.read(fd, to, length);
    return crypt_readv(fd, &(struct iovec){to, length}, 1);
}

/* Writing */

/* As pwrite, but a full disk is given the chance to lose clean blocks first. */
static ssize_t pwrite_room(int fd, const unsigned char *bytes, size_t length, off_t offset)
{
    size_t done = 0;
    for (;;) {
        ssize_t n = real.pwrite(fd, bytes + done, length - done, offset + (off_t)done);
        if (n > 0 && (done += (size_t)n) == length)
            return (ssize_t)done;
        if (n > 0)
            continue; /* short: the next attempt says why */
        if (n == 0 || !cache_is_full(errno) || !cache_make_room(length - done))
            return done > 0 ? (ssize_t)done : n;
    }
}

/* After a real write of [start, start + written) that came up short: the whole blocks of it count, and the file must not end in part of one. */
static off_t settle_short(int fd, off_t start, ssize_t written)
{
    off_t end = start + written;
    int saved = errno;
    if (IN_BLOCK(end) != 0 && length_of(fd) == end && real.ftruncate(fd, ROUND_DOWN(end)) != 0)
        shim_log("cannot cut off half a block after a short write: %s", strerror(errno));
    errno = saved;
    return ROUND_DOWN(end);
}

/* Whole blocks into a file that has no tail; no lock needed beyond the caller's. */
static ssize_t write_blocks(int fd, uint64_t inode, const struct iovec *vector, size_t length, off_t offset)
{
    unsigned char *bytes = window();
    size_t done = 0, used = 0; /* used: bytes of *vector that went */
    if (bytes == NULL)
        return -1;
    while (done < length) {
        size_t filled = 0;
        off_t at = offset + (off_t)done;
        while (filled < WINDOW && done + filled < length) {
            size_t n = vector->iov_len - used < WINDOW - filled ? vector->iov_len - used : WINDOW - filled;
            if (failed(xts_encrypt(inode, at + (off_t)filled, (const char *)vector->iov_base + used, bytes + filled, n)))
                return done > 0 ? (ssize_t)done : -1;
            filled += n;
            used += n;
            if (used == vector->iov_len) {
                vector++;
                used = 0;
            }
        }
        ssize_t written = pwrite_room(fd, bytes, filled, at);
        if (written < 0)
            return done > 0 ? (ssize_t)done : -1;
        done += filled;
        if (unlikely((size_t)written < filled)) {
            off_t end = settle_short(fd, at, written);
            errno = ENOSPC;
            return end > offset ? (ssize_t)(end - offset) : -1;
        }
    }
    return (ssize_t)done;
}

/* The plaintext of the block at `start` as far as the file has it, zeros behind. */
static int load_block(int fd, uint64_t inode, off_t start, off_t length, unsigned char block[XTS_BLOCK])
{
    memset(block, 0, XTS_BLOCK);
    if (start >= length)
        return 0;
    size_t there = length - start < (off_t)XTS_BLOCK ? (size_t)(length - start) : XTS_BLOCK;
    ssize_t got = real.pread(fd, block, there, start);
    if (got < 0)
        return errno;
    return (size_t)got < there ? EIO : decode(inode, start, block, there);
}

/* The tail becomes a whole block, because the file is about to grow past it. */
static int complete_tail(int fd, uint64_t inode, off_t length)
{
    unsigned char block[XTS_BLOCK];
    off_t start = ROUND_DOWN(length);
    int error = load_block(fd, inode, start, length, block);
    if (error == 0)
        error = xts_encrypt(inode, start, block, block, XTS_BLOCK);
    if (error != 0)
        return error;
    ssize_t written = pwrite_room(fd, block, XTS_BLOCK, start);
    if (written == (ssize_t)XTS_BLOCK)
        return 0;
    error = written < 0 ? errno : ENOSPC;
    if (real.ftruncate(fd, length) != 0) /* what was written is the beginning of the block: it no longer reads as a tail */
        shim_log("cannot take back half a block after a short write: %s", strerror(errno));
    return error;
}

/* Any offset and length, under the exclusive lock. */
static ssize_t write_locked(int fd, uint64_t inode, const char *from, size_t length, off_t offset)
{
    unsigned char *bytes = window();
    unsigned char block[XTS_BLOCK];
    off_t size = length_of(fd);
    size_t done = 0;
    if (bytes == NULL || size < 0)
        return -1;
    if (length > 0 && IN_BLOCK(size) != 0 && offset >= ROUND_UP(size)) {
        if (failed(complete_tail(fd, inode, size)))
            return -1;
        size = ROUND_UP(size);
    }
    while (done < length) {
        off_t at = offset + (off_t)done, start = ROUND_DOWN(at);
        size_t head = (size_t)(at - start);
        size_t take = length - done < WINDOW - head ? length - done : WINDOW - head;
        off_t end = at + (off_t)take, covered = end;
        int error = 0;
        if (IN_BLOCK(end) != 0 && end < size) { /* the rest of the last block stays as it is */
            off_t last = ROUND_DOWN(end);
            covered = last + (off_t)XTS_BLOCK < size ? last + (off_t)XTS_BLOCK : size;
            error = load_block(fd, inode, last, size, block);
            memcpy(bytes + (end - start), block + IN_BLOCK(end), (size_t)(covered - end));
        }
        if (error == 0 && head != 0) {
            error = load_block(fd, inode, start, size, block);
            memcpy(bytes, block, head);
        }
        memcpy(bytes + head, from + done, take);
        size_t total = (size_t)(covered - start);
        if (error == 0)
            error = encode(inode, start, bytes, total);
        ssize_t written = failed(error) ? -1 : pwrite_room(fd, bytes, total, start);
        if (written < 0)
            return done > 0 ? (ssize_t)done : -1;
        if ((size_t)written < total) {
            off_t good = settle_short(fd, start, written);
            errno = ENOSPC;
            return good > offset ? (ssize_t)((good < end ? good : end) - offset) : -1;
        }
        done += take;
        if (end > size)
            size = end;
    }
    return (ssize_t)done;
}

static ssize_t writev_any(int fd, uint64_t inode, const struct iovec *vector, int count, off_t offset)
{
    ssize_t done = 0;
    for (int i = 0; i < count; i++) {
        ssize_t n = write_locked(fd, inode, vector[i].iov_base, vector[i].iov_len, offset + done);
        if (n < 0 && done == 0)
            return -1;
        if (n > 0)
            done += n;
        if (n < (ssize_t)vector[i].iov_len)
            break;
    }
    return done;
}

ssize_t crypt_pwritev(int fd, const struct iovec *vector, int count, off_t offset)
{
    uint64_t inode = fd_table_inode(fd);
    if (inode == 0)
        return real.pwritev(fd, vector, count, offset);
    size_t length = vector_length(vector, count);
    if (offset < 0 || count < 0 || offset + (off_t)length < offset) {
        errno = EINVAL;
        return -1;
    }
    bool blocks = in_multiples(vector, count, offset, XTS_BLOCK);
    bool locked = (fd_table_flags(fd) & FD_LOCKED) != 0;
    off_t size = blocks ? length_of(fd) : 0;
    if (size < 0)
        return -1;
    if (likely(blocks && !locked && IN_BLOCK(size) == 0))
        return write_blocks(fd, inode, vector, length, offset);
    if (lock(fd, F_WRLCK) != 0)
        return -1;
    ssize_t result = blocks && IN_BLOCK(length_of(fd)) == 0 ? write_blocks(fd, inode, vector, length, offset)
                                                            : writev_any(fd, inode, vector, count, offset);
    unlock(fd);
    return result;
}

ssize_t crypt_pwrite(int fd, const void *from, size_t length, off_t offset)
{
    if (fd_table_inode(fd) == 0)
        return real.pwrite(fd, from, length, offset);
    return crypt_pwritev(fd, &(struct iovec){(void *)from, length}, 1, offset);
}

static ssize_t append(int fd, uint64_t inode, const struct iovec *vector, int count)
{
    if (lock(fd, F_WRLCK) != 0)
        return -1;
    off_t at = length_of(fd);
    ssize_t result = at < 0 ? -1 : writev_any(fd, inode, vector, count, at);
    unlock(fd);
    return advanced(fd, at, result);
}

ssize_t crypt_writev(int fd, const struct iovec *vector, int count)
{
    uint64_t inode = fd_table_inode(fd);
    if (inode == 0)
        return real.writev(fd, vector, count);
    if ((fd_table_flags(fd) & FD_APPEND) != 0)
        return append(fd, inode, vector, count);
    off_t at = lseek(fd, 0, SEEK_CUR);
    return at < 0 ? -1 : advanced(fd, at, crypt_pwritev(fd, vector, count, at));
}

ssize_t crypt_write(int fd, const void *from, size_t length)
{
    if (likely(fd_table_inode(fd) == 0))
        return real.write(fd, from, length);
    return crypt_writev(fd, &(struct iovec){(void *)from, length}, 1);
}

/* Lengths */

static int truncate_locked(int fd, uint64_t inode, off_t size, off_t to)
{
    unsigned char block[XTS_BLOCK];
    off_t last = ROUND_DOWN(to);
    /* The block the file will end in, before anything is cut or grown. */
    int error = load_block(fd, inode, last, size, block);
    if (error == 0 && IN_BLOCK(size) != 0 && to >= ROUND_UP(size))
        error = complete_tail(fd, inode, size);
    if (error == 0 && real.ftruncate(fd, to) != 0)
        error = errno;
    size_t over = IN_BLOCK(to);
    if (error != 0 || over == 0 || to == size)
        return error;
    error = xts_tail(inode, last, block, over);
    if (error == 0 && pwrite_room(fd, block, over, last) != (ssize_t)over)
        error = errno != 0 ? errno : EIO;
    return error;
}

int crypt_ftruncate(int fd, off_t to)
{
    uint64_t inode = fd_table_inode(fd);
    if (inode == 0 || to < 0)
        return real.ftruncate(fd, to);
    off_t size = length_of(fd);
    if (size < 0)
        return -1;
    if (likely(IN_BLOCK(to) == 0 && IN_BLOCK(size) == 0))
        return real.ftruncate(fd, to);
    if (lock(fd, F_WRLCK) != 0)
        return -1;
    size = length_of(fd);
    int error = size < 0 ? errno : truncate_locked(fd, inode, size, to);
    unlock(fd);
    return failed(error) ? -1 : 0;
}

int crypt_grow(int fd, off_t end)
{
    if (fd_table_inode(fd) == 0)
        return 0;
    off_t size = length_of(fd);
    if (size < 0)
        return errno;
    if (end <= size || (IN_BLOCK(size) == 0 && IN_BLOCK(end) == 0))
        return 0;
    int saved = errno;
    int error = crypt_ftruncate(fd, end) == 0 ? 0 : errno;
    errno = saved;
    return error;
}
