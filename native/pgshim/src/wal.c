/* Back-pressure (docs/flows/backpressure.md): a write of WAL takes as long per page as the agent says. To Postgres that is a slower disk.
 *
 * Invariants: no sleep is longer than SLEEP_NS_MAX: a longer write is cut, and its caller comes again; the bytes are in the file before the
 * sleep, and nothing of ours is held during it. */
#define _GNU_SOURCE
#include "wal.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "crypt.h"
#include "resident_map.h"
#include "segment_path.h"
#include "util.h"

#define WAL_SEGMENT_BYTES ((uint64_t)16 << 20)
#define SLEEP_NS_MAX 50000000u
#define SECOND_NS 1000000000

/* Eight upper-case hexadecimal digits. */
static bool hex(const char *text, uint32_t *value)
{
    *value = 0;
    for (int i = 0; i < 8; i++) {
        char c = text[i];
        uint32_t digit;
        if (c >= '0' && c <= '9')
            digit = (uint32_t)(c - '0');
        else if (c >= 'A' && c <= 'F')
            digit = (uint32_t)(c - 'A') + 10;
        else
            return false;
        *value = *value << 4 | digit;
    }
    return true;
}

int32_t wal_mark(const char *path)
{
    uint32_t timeline, high, low;
    const char *relative = map == NULL || path == NULL ? NULL : segment_path_below(path);
    if (relative == NULL || strncmp(relative, "pg_wal/", 7) != 0 || strlen(relative) != 7 + 24)
        return 0;
    if (!hex(relative + 7, &timeline) || !hex(relative + 15, &high) || !hex(relative + 23, &low) || low > 255 || high > INT32_MAX / 256 - 1)
        return 0;
    return -1 - (int32_t)(high * 256 + low);
}

static void note_position(uint64_t end)
{
    uint64_t old = atomic_load_explicit(&map->wal_position, memory_order_relaxed);
    while (old < end && !atomic_compare_exchange_weak(&map->wal_position, &old, end))
        ;
}

static void sleep_ns(uint64_t ns)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)ns;
    if (until.tv_nsec >= SECOND_NS) {
        until.tv_sec++;
        until.tv_nsec -= SECOND_NS;
    }
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
        ;
    map_count(&map->wal_slept_ns, ns);
}

ssize_t wal_pwrite(int fd, int32_t mark, const void *from, size_t length, off_t offset)
{
    uint64_t page_ns = map == NULL ? 0 : atomic_load_explicit(&map->wal_delay_ns, memory_order_relaxed);
    if (unlikely(page_ns != 0) && offset >= 0) {
        size_t pages = page_ns < SLEEP_NS_MAX ? SLEEP_NS_MAX / page_ns : 1;
        size_t most = pages * BLCKSZ - (size_t)(offset % BLCKSZ);
        length = length < most ? length : most;
    }
    ssize_t written = crypt_pwrite(fd, from, length, offset);
    if (written <= 0 || map == NULL)
        return written;
    note_position((uint64_t)(-1 - (int64_t)mark) * WAL_SEGMENT_BYTES + (uint64_t)offset + (uint64_t)written);
    if (unlikely(page_ns != 0)) {
        int saved = errno;
        uint64_t ns = page_ns * (((uint64_t)written + BLCKSZ - 1) / BLCKSZ);
        sleep_ns(ns < SLEEP_NS_MAX ? ns : SLEEP_NS_MAX);
        errno = saved;
    }
    return written;
}
