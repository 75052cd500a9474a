/* Faults: turning absent blocks into resident ones, and the claims of writes and truncations on the same blocks.
 *
 * Invariants (docs/protocols/shim-agent.md, Rules)
 * - A fault fetches without holding anything, then installs only into blocks that are still absent: whoever wrote meanwhile wins.
 * - While this process owns a busy block every signal is held, so it always gets to the release.
 * - A block that a write covers in part is WRITTEN before the write: an absent one must not take part of its bytes from a hole.
 * - A fault never waits while it owns a block; writes and truncations wait upwards only. */
#define _GNU_SOURCE
#include "fault.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "agent_client.h"
#include "cache.h"
#include "crypt.h"
#include "fd_table.h"
#include "gate.h"
#include "libc.h"

/* Guards the connection and the buffer. Postgres's processes have one thread that does file calls; the lock is for the day they do not. */
static pthread_mutex_t fault_lock = PTHREAD_MUTEX_INITIALIZER;
#define AHEAD_BLOCKS_MAX 16u
static _Alignas(4096) char fetched[FETCH_BLOCKS_MAX * BLCKSZ];
/* Which pages the buffer holds; no entry: none. Written under the lock; looked at without it to see whether it is worth taking. */
static struct map_entry *_Atomic fetched_entry;
static _Atomic uint32_t fetched_first, fetched_end;
static _Atomic uint64_t fetched_epoch; /* map->fetch_epoch of before they were asked for */

void fault_after_fork(void)
{
    fault_lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    fetched_entry = NULL;
}

/* Rule 1: writes fetched pages into blocks that are still absent. Blocks may have been written, settled and dropped since the request: then they are absent
 * again, but what was fetched is too old for them. The epoch changed before any of them was settled, so a block that is ours and absent before at the epoch
 * of the request was absent all the time. */
static int install(struct map_entry *entry, int fd, uint32_t first, uint32_t count, uint64_t epoch)
{
    uint32_t end = first + count;
    for (uint32_t block = first; block < end;) {
        if (!map_swap(entry, block, BLOCK_ABSENT, BLOCK_BUSY)) {
            block++;
            continue;
        }
        uint32_t run_end = block + 1;
        while (run_end < end && map_swap(entry, run_end, BLOCK_ABSENT, BLOCK_BUSY))
            run_end++;
        if (unlikely(atomic_load(&map->fetch_epoch) != epoch)) {
            map_finish(entry, block, run_end, BLOCK_ABSENT);
            return 0; /* whoever needs them asks again */
        }
        int error = pwrite_all(fd, fetched + (size_t)(block - first) * BLCKSZ, (size_t)(run_end - block) * BLCKSZ, (off_t)block * BLCKSZ);
        if (error == 0)
            map_count(&map->clean_blocks, run_end - block); /* before somebody can take them off again */
        map_finish(entry, block, run_end, error == 0 ? BLOCK_RESIDENT : BLOCK_ABSENT);
        if (error != 0)
            return error;
        block = run_end;
    }
    return 0;
}

/* Length of the run of absent blocks from `block` on, below `end`. */
static uint32_t absent_run(struct map_entry *entry, uint32_t block, uint32_t end)
{
    uint32_t run = 0;
    while (block + run < end && map_state(entry, block + run) == BLOCK_ABSENT)
        run++;
    return run;
}

/* How many blocks to ask for: what is needed, plus as many again as lie resident right before it, up to AHEAD_BLOCKS_MAX. A scan thus grows its
 * requests, whichever process or descriptor it came through (I/O workers share a scan), and a random read asks for little more than its block.
 * Reading further ahead is the agent's work: three I/O workers that each asked for 128 blocks fetched six blocks for every four they needed. */
static uint32_t request_length(struct map_entry *entry, uint32_t block, uint32_t needed_end)
{
    uint32_t nblocks = map_nblocks(entry);
    uint32_t need = absent_run(entry, block, needed_end < block + FETCH_BLOCKS_MAX ? needed_end : block + FETCH_BLOCKS_MAX);
    if (need == 0 || block + need < needed_end || need == FETCH_BLOCKS_MAX || agent_background)
        return need;
    uint32_t most = FETCH_BLOCKS_MAX - need < AHEAD_BLOCKS_MAX ? FETCH_BLOCKS_MAX - need : AHEAD_BLOCKS_MAX;
    uint32_t ahead = map_run_before(entry, block, most);
    uint32_t limit = nblocks - block < need + ahead ? nblocks : block + need + ahead;
    return need + (limit > block + need ? absent_run(entry, block + need, limit) : 0);
}

static void report_failure(struct map_entry *entry, uint32_t block, uint32_t count, int error)
{
    map_count(&map->errors, 1);
    shim_log("cannot fetch %u blocks from block %u of segment %u of relation %u/%u fork %u: %s", count, block, entry->segno, entry->db, entry->rel,
             entry->fork, strerror(error));
}

static int fetch_and_install(struct map_entry *entry, int fd, uint32_t block, uint32_t count)
{
    uint32_t index = (uint32_t)(entry - map_entries);
    pthread_mutex_lock(&fault_lock);
    atomic_store_explicit(&fetched_entry, NULL, memory_order_relaxed);
    uint64_t epoch = atomic_load(&map->fetch_epoch);
    int error = agent_fetch(index, block, count, fetched);
    if (error == 0) {
        atomic_store_explicit(&fetched_epoch, epoch, memory_order_relaxed);
        map_count(&map->fault_requests, 1);
        map_count(&map->blocks_fetched, count);
        atomic_store_explicit(&fetched_first, block, memory_order_relaxed);
        atomic_store_explicit(&fetched_end, block + count, memory_order_relaxed);
        atomic_store_explicit(&fetched_entry, entry, memory_order_relaxed);
        error = install(entry, fd, block, count, epoch);
    }
    pthread_mutex_unlock(&fault_lock);
    cache_settle();
    if (error != 0 && !cache_is_full(error)) /* then reads go past the disk, and writes say so themselves */
        report_failure(entry, block, count, error);
    return error;
}

static int fault_held(struct map_entry *entry, int fd, struct block_range range)
{
    for (uint32_t block = range.first; block < range.end;) {
        enum block_state state = map_state(entry, block);
        int error = 0;
        if (state >= BLOCK_RESIDENT) {
            block++;
        } else if (state == BLOCK_BUSY) {
            error = map_wait(entry, block);
        } else if (map_nblocks(entry) <= block) {
            return 0; /* truncated away meanwhile: local from now on */
        } else {
            uint32_t count = request_length(entry, block, range.end);
            if (count > 0) /* 0: somebody else was faster; look again */
                error = fetch_and_install(entry, fd, block, count);
        }
        if (error != 0)
            return error;
    }
    return 0;
}

int fault_blocks(struct map_entry *entry, int fd, struct block_range range)
{
    sigset_t saved;
    int saved_errno = errno;
    signals_hold(&saved);
    int error = fault_held(entry, fd, range);
    signals_release(&saved);
    errno = saved_errno;
    return error;
}

/* `length` bytes at `offset` of the whole read. */
static void scatter(const struct iovec *vector, size_t offset, const char *bytes, size_t length)
{
    for (; length > 0; vector++) {
        if (offset >= vector->iov_len) {
            offset -= vector->iov_len;
            continue;
        }
        size_t n = vector->iov_len - offset < length ? vector->iov_len - offset : length;
        memcpy((char *)vector->iov_base + offset, bytes, n);
        bytes += n;
        length -= n;
        offset = 0;
    }
}

static bool all_clean(struct map_entry *entry, struct block_range range)
{
    for (uint32_t block = range.first; block < range.end; block++)
        if (map_state(entry, block) != BLOCK_RESIDENT)
            return false;
    return true;
}

static bool is_buffered(const struct map_entry *entry, struct block_range range)
{
    return atomic_load_explicit(&fetched_entry, memory_order_relaxed) == entry &&
           range.first >= atomic_load_explicit(&fetched_first, memory_order_relaxed) &&
           range.end <= atomic_load_explicit(&fetched_end, memory_order_relaxed);
}

bool fault_read_buffered(struct map_entry *entry, const struct iovec *vector, off_t offset, size_t length)
{
    struct block_range range = {(uint32_t)(offset / BLCKSZ), (uint32_t)((offset + (off_t)length + BLCKSZ - 1) / BLCKSZ)};
    if (likely(!is_buffered(entry, range)) || length == 0 || offset < 0)
        return false;
    sigset_t saved;
    signals_hold(&saved);
    pthread_mutex_lock(&fault_lock);
    /* The epoch after the states: a block that was settled since is clean too, but not what was fetched. */
    bool held = is_buffered(entry, range) && range.end <= map_nblocks(entry) && all_clean(entry, range) &&
                atomic_load(&map->fetch_epoch) == atomic_load_explicit(&fetched_epoch, memory_order_relaxed);
    if (held)
        scatter(vector, 0, fetched + (offset - (off_t)fetched_first * BLCKSZ), length);
    pthread_mutex_unlock(&fault_lock);
    signals_release(&saved);
    return held;
}

/* What the file says of part of one block; false when it may have been dropped meanwhile. */
static bool read_kept(struct map_entry *entry, int fd, uint32_t block, char *to, size_t length, off_t at, ssize_t *got)
{
    uint32_t generation = map_generation(entry);
    if (block < map_nblocks(entry) && map_state(entry, block) < BLOCK_RESIDENT)
        return false;
    *got = crypt_pread(fd, to, length, at);
    return map_generation(entry) == generation;
}

/* The same from storage; false when the block is not absent (any more). */
static bool read_fetched(struct map_entry *entry, uint32_t block, char *to, size_t length, size_t from, ssize_t *got)
{
    sigset_t saved;
    signals_hold(&saved);
    pthread_mutex_lock(&fault_lock);
    atomic_store_explicit(&fetched_entry, NULL, memory_order_relaxed);
    uint64_t epoch = atomic_load(&map->fetch_epoch);
    int error = agent_fetch((uint32_t)(entry - map_entries), block, 1, fetched);
    memcpy(to, fetched + from, length);
    pthread_mutex_unlock(&fault_lock);
    signals_release(&saved);
    *got = error == 0 ? (ssize_t)length : -1;
    if (error != 0) {
        report_failure(entry, block, 1, error);
        errno = error;
    }
    return map_state(entry, block) == BLOCK_ABSENT && atomic_load(&map->fetch_epoch) == epoch;
}

ssize_t fault_read_past(struct map_entry *entry, int fd, const struct iovec *vector, int count, off_t offset)
{
    static _Thread_local char part[BLCKSZ];
    size_t length = 0, done = 0;
    for (int i = 0; i < count; i++)
        length += vector[i].iov_len;
    while (done < length) {
        off_t at = offset + (off_t)done;
        size_t from = (size_t)(at % BLCKSZ);
        size_t n = BLCKSZ - from < length - done ? BLCKSZ - from : length - done;
        uint32_t block = (uint32_t)(at / BLCKSZ);
        ssize_t got = 0;
        while (!read_kept(entry, fd, block, part, n, at, &got)) {
            int error = map_wait(entry, block);
            if (error != 0) {
                errno = error;
                return -1;
            }
            if (block < map_nblocks(entry) && map_state(entry, block) == BLOCK_ABSENT && read_fetched(entry, block, part, n, from, &got))
                break;
        }
        if (got < 0)
            return done > 0 ? (ssize_t)done : -1;
        scatter(vector, done, part, (size_t)got);
        done += (size_t)got;
        if ((size_t)got < n)
            break; /* the file ends here */
    }
    return (ssize_t)done;
}

static bool become_written(struct map_entry *entry, uint32_t block)
{
    if (!map_swap(entry, block, BLOCK_RESIDENT, BLOCK_WRITTEN))
        return map_state(entry, block) == BLOCK_WRITTEN;
    map_count(&map->blocks_written, 1);
    map_clean_less(1);
    return true;
}

/* Fetches what is absent, and makes all of it written: nobody drops it while the write that marked it young is under way. */
static int fault_for_write(struct map_entry *entry, int fd, uint32_t first, uint32_t end)
{
    int error = fault_held(entry, fd, (struct block_range){first, end});
    for (uint32_t block = first; error == 0 && block < end; block++)
        while (error == 0 && block < map_nblocks(entry) && !become_written(entry, block))
            error = fault_held(entry, fd, (struct block_range){block, block + 1});
    return error;
}

/* A write that covers only part of its first or last block needs the rest of that block from storage. */
static int fault_partial_ends(struct map_entry *entry, int fd, struct block_range range, off_t offset, size_t length)
{
    int error = 0;
    uint32_t last = range.end - 1;
    off_t end = offset + (off_t)length;
    if (offset % BLCKSZ != 0)
        error = fault_for_write(entry, fd, range.first, range.first + 1);
    if (error == 0 && end < ((off_t)last + 1) * BLCKSZ)
        error = fault_for_write(entry, fd, last, last + 1);
    return error;
}

/* Rule 2 for one block: after it, the block is either busy by us (true) or written already. */
static int claim_block(struct write_claim *claim, uint32_t block)
{
    for (;;) {
        if (map_swap(claim->entry, block, BLOCK_ABSENT, BLOCK_BUSY)) {
            uint32_t at = block - claim->first;
            claim->claimed[at / 64] |= (uint64_t)1 << (at % 64);
            claim->claimed_count = at + 1;
            return 0;
        }
        if (become_written(claim->entry, block))
            return 0;
        int error = map_wait(claim->entry, block);
        if (error != 0)
            return error;
    }
}

static bool is_claimed(const struct write_claim *claim, uint32_t at)
{
    return (claim->claimed[at / 64] >> (at % 64) & 1) != 0;
}

int fault_begin_write(struct write_claim *claim, int fd, off_t offset, size_t length)
{
    gate_enter();
    struct map_entry *entry = claim->entry = fd_table_entry(fd);
    claim->held = false;
    if (entry == NULL)
        return 0;
    struct block_range range = tracked_blocks(entry, offset, length);
    map_mark_young(entry, range.first, range.end);
    if (likely(map_all_written(entry, range.first, range.end)))
        return 0;
    int saved_errno = errno;
    *claim = (struct write_claim){.entry = entry, .offset = offset, .first = range.first, .held = true};
    signals_hold(&claim->saved);
    bool too_long = range.end - range.first > CLAIM_BLOCKS_MAX;
    int error = too_long ? fault_for_write(entry, fd, range.first, range.end) : fault_partial_ends(entry, fd, range, offset, length);
    for (uint32_t block = range.first; error == 0 && !too_long && block < range.end; block++)
        error = claim_block(claim, block);
    errno = saved_errno;
    if (error != 0) {
        fault_end_write(claim, -1);
        errno = saved_errno;
    }
    return error;
}

ssize_t fault_end_write(struct write_claim *claim, ssize_t result)
{
    if (!claim->held) {
        gate_leave();
        return result;
    }
    int error = errno;
    off_t written_end = claim->offset + (result > 0 ? result : 0);
    for (uint32_t at = 0; at < claim->claimed_count; at++) {
        if (!is_claimed(claim, at))
            continue;
        uint32_t block = claim->first + at;
        off_t block_end = ((off_t)block + 1) * BLCKSZ;
        bool whole = block_end <= written_end;
        /* A torn block stays absent, so its bytes must not count as written: the caller writes them again. */
        if (!whole && result > 0 && claim->offset + result > block_end - BLCKSZ) {
            result = (ssize_t)(block_end - BLCKSZ - claim->offset);
            if (result <= 0) {
                result = -1;
                error = ENOSPC;
            }
        }
        if (whole)
            map_count(&map->blocks_written, 1);
        map_finish(claim->entry, block, block + 1, whole ? BLOCK_WRITTEN : BLOCK_ABSENT);
    }
    gate_leave();
    signals_release(&claim->saved);
    claim->held = false;
    errno = error;
    return result;
}

/* Rule 3, so that a failed ftruncate loses nothing: absent blocks are busy during the call, and written (or absent again) after it. */
int fault_begin_truncate(struct truncate_claim *claim, struct map_entry *entry, int fd, off_t length)
{
    uint32_t nblocks = map_nblocks(entry);
    uint32_t first = length < 0 || length >= (off_t)nblocks * BLCKSZ ? nblocks : (uint32_t)((length + BLCKSZ - 1) / BLCKSZ);
    int saved_errno = errno;
    *claim = (struct truncate_claim){.entry = entry, .first = first, .end = nblocks};
    signals_hold(&claim->saved);
    int error = map_hold(entry);
    claim->held = error == 0;
    claim->cut = length > 0 && length % BLCKSZ != 0 && length / BLCKSZ < (off_t)nblocks;
    if (claim->cut)
        map_mark_young(entry, first - 1, first);
    if (error == 0 && claim->cut)
        error = fault_held(entry, fd, (struct block_range){first - 1, first});
    uint32_t block = first;
    while (error == 0 && block < nblocks) {
        if (map_swap(entry, block, BLOCK_ABSENT, BLOCK_BUSY) || map_state(entry, block) >= BLOCK_RESIDENT)
            block++;
        else
            error = map_wait(entry, block);
    }
    errno = saved_errno;
    if (error != 0) {
        claim->end = block;
        fault_end_truncate(claim, false);
    }
    return error;
}

void fault_end_truncate(struct truncate_claim *claim, bool worked)
{
    int saved_errno = errno;
    struct map_entry *entry = claim->entry;
    /* Every busy block of the range is ours: there was no absent one left that anybody else could have taken. */
    for (uint32_t block = claim->first; block < claim->end; block++) {
        if (map_state(entry, block) == BLOCK_BUSY)
            map_finish(entry, block, block + 1, worked ? BLOCK_WRITTEN : BLOCK_ABSENT);
        else if (worked && map_swap(entry, block, BLOCK_RESIDENT, BLOCK_WRITTEN))
            map_clean_less(1);
    }
    if (worked && claim->cut && map_swap(entry, claim->first - 1, BLOCK_RESIDENT, BLOCK_WRITTEN))
        map_clean_less(1);
    uint32_t old = map_nblocks(entry);
    while (worked && claim->first < old && !atomic_compare_exchange_weak(&entry->nblocks, &old, claim->first))
        ;
    if (claim->held)
        map_release(entry);
    signals_release(&claim->saved);
    errno = saved_errno;
}
