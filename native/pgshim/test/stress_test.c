/* Several processes, two threads each, go through the same segments together, reading, writing and truncating the same blocks while faults
 * are under way and clean blocks are being dropped.
 * As in Postgres, a lock per block orders writers of that block (buffer content lock), and truncation excludes users of the tail (table
 * lock) but not the readahead of everybody else into it. Checked: a read never returns anything older than the last finished write, never
 * a torn page outside a write, never a page of before a truncation. */
#include "harness.h"

#include <sched.h>

#include "cache.h"
#include "libc.h"

#define SEGMENTS 100u
#define BLOCKS 64u
#define TAIL 40u /* blocks from here on are used under the segment's tail lock only */
#define PROCESSES 4
#define THREADS 2
#define STEPS 12 /* calls each thread makes on one segment before all move on to the next, untouched one */

struct segment_state {
    pthread_rwlock_t tail;
    pthread_mutex_t block[BLOCKS];
    _Atomic uint64_t expected[BLOCKS]; /* the word every part of the page must hold */
    _Atomic uint64_t pending[BLOCKS];  /* the word being written */
    _Atomic uint64_t sequence[BLOCKS]; /* odd while the block is being written or cut off */
};

struct shared {
    pthread_barrier_t start;
    _Atomic uint32_t checked;
    struct segment_state segments[SEGMENTS];
};

static struct shared *shared;

struct place {
    struct segment_state *state;
    uint32_t entry;
    int fd;
    unsigned seed;
};

/* Gives the processor away right before the real call: whatever is wrong between a change of state and the bytes gets its chance. */
static ssize_t (*libc_pwrite)(int, const void *, size_t, off_t);
static int (*libc_ftruncate)(int, off_t);

static ssize_t slow_pwrite(int to, const void *bytes, size_t length, off_t offset)
{
    for (int i = 0; i < 3; i++)
        sched_yield();
    return libc_pwrite(to, bytes, length, offset);
}

static int slow_ftruncate(int to, off_t length)
{
    for (int i = 0; i < 3; i++)
        sched_yield();
    return libc_ftruncate(to, length);
}

static ssize_t (*libc_pread)(int, void *, size_t, off_t);
static int (*libc_fallocate)(int, int, off_t, off_t);

static ssize_t slow_pread(int from, void *bytes, size_t length, off_t offset)
{
    for (int i = 0; i < 2; i++)
        sched_yield();
    return libc_pread(from, bytes, length, offset);
}

static int slow_fallocate(int fd, int mode, off_t offset, off_t length)
{
    for (int i = 0; i < 3; i++)
        sched_yield();
    return libc_fallocate(fd, mode, offset, length);
}

static void slow_down(void)
{
    libc_resolve();
    libc_pread = real.pread;
    libc_fallocate = real.fallocate;
    real.pread = slow_pread;
    real.fallocate = slow_fallocate;
    libc_pwrite = real.pwrite;
    libc_ftruncate = real.ftruncate;
    real.pwrite = slow_pwrite;
    real.ftruncate = slow_ftruncate;
}

static void share_locks(void)
{
    pthread_rwlockattr_t rw;
    pthread_mutexattr_t mutex;
    pthread_barrierattr_t barrier;
    shared = shared_memory(sizeof *shared);
    pthread_rwlockattr_init(&rw);
    pthread_rwlockattr_setpshared(&rw, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_init(&mutex);
    pthread_mutexattr_setpshared(&mutex, PTHREAD_PROCESS_SHARED);
    pthread_barrierattr_init(&barrier);
    pthread_barrierattr_setpshared(&barrier, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(&shared->start, &barrier, PROCESSES * THREADS);
    for (uint32_t s = 0; s < SEGMENTS; s++) {
        pthread_rwlock_init(&shared->segments[s].tail, &rw);
        for (uint32_t b = 0; b < BLOCKS; b++)
            pthread_mutex_init(&shared->segments[s].block[b], &mutex);
    }
}

/* Outside writes the page is the expected one; inside, every word is the old or the new one. */
static void check_page(struct place *at, uint32_t block, const char *page, uint64_t sequence, uint64_t expected, uint64_t pending)
{
    bool writing = sequence % 2 != 0;
    bool right = true;
    for (size_t i = 0; i < BLCKSZ; i += 8) {
        uint64_t word;
        memcpy(&word, page + i, 8);
        right = right && (word == expected || (writing && word == pending));
    }
    if (!right) {
        fprintf(stderr, "segment %u block %u: starts with %llx, expected %llx\n", at->entry, block, *(const unsigned long long *)(const void *)page,
                (unsigned long long)expected);
        exit(1);
    }
    atomic_fetch_add(&shared->checked, 1);
}

static void read_and_check(struct place *at, uint32_t first, uint32_t count)
{
    static _Thread_local char pages[16 * BLCKSZ];
    struct segment_state *s = at->state;
    uint64_t sequence[16], expected[16], pending[16];
    for (uint32_t i = 0; i < count; i++) {
        sequence[i] = atomic_load(&s->sequence[first + i]);
        expected[i] = atomic_load(&s->expected[first + i]);
        pending[i] = atomic_load(&s->pending[first + i]);
    }
    CHECK(pread(at->fd, pages, count * BLCKSZ, (off_t)first * BLCKSZ) == (ssize_t)(count * BLCKSZ));
    for (uint32_t i = 0; i < count; i++)
        if (atomic_load(&s->sequence[first + i]) == sequence[i])
            check_page(at, first + i, pages + i * BLCKSZ, sequence[i], expected[i], pending[i]);
}

static void write_block(struct place *at, uint32_t block)
{
    static _Thread_local char page[BLCKSZ];
    struct segment_state *s = at->state;
    pthread_mutex_lock(&s->block[block]);
    uint64_t word = pattern(at->entry, block, (uint32_t)rand_r(&at->seed) % 0x7fffff + 1);
    atomic_store(&s->pending[block], word);
    atomic_fetch_add(&s->sequence[block], 1);
    fill_page(page, word);
    if (rand_r(&at->seed) % 8 == 0) { /* in two halves: each is a write of part of a block */
        CHECK(pwrite(at->fd, page, BLCKSZ / 2, (off_t)block * BLCKSZ) == BLCKSZ / 2);
        CHECK(pwrite(at->fd, page, BLCKSZ / 2, (off_t)block * BLCKSZ + BLCKSZ / 2) == BLCKSZ / 2);
    } else {
        CHECK(pwrite(at->fd, page, BLCKSZ, (off_t)block * BLCKSZ) == BLCKSZ);
    }
    atomic_store(&s->expected[block], word);
    atomic_fetch_add(&s->sequence[block], 1);
    pthread_mutex_unlock(&s->block[block]);
}

/* Cuts the tail off and grows it again with zeros: from here on its blocks are local. */
static void truncate_tail(struct place *at)
{
    struct segment_state *s = at->state;
    pthread_rwlock_wrlock(&s->tail);
    uint32_t to = TAIL + (uint32_t)rand_r(&at->seed) % (BLOCKS - TAIL);
    for (uint32_t b = to; b < BLOCKS; b++)
        atomic_fetch_add(&s->sequence[b], 1);
    CHECK(ftruncate(at->fd, (off_t)to * BLCKSZ) == 0);
    CHECK(lseek(at->fd, 0, SEEK_END) == (off_t)to * BLCKSZ);
    sched_yield(); /* a late installer would show here */
    CHECK(lseek(at->fd, 0, SEEK_END) == (off_t)to * BLCKSZ);
    CHECK(posix_fallocate(at->fd, (off_t)to * BLCKSZ, (off_t)(BLOCKS - to) * BLCKSZ) == 0);
    for (uint32_t b = to; b < BLOCKS; b++) {
        atomic_store(&s->expected[b], 0);
        atomic_fetch_add(&s->sequence[b], 1);
    }
    pthread_rwlock_unlock(&s->tail);
}

static void one_step(struct place *at)
{
    uint32_t choice = (uint32_t)rand_r(&at->seed) % 100;
    if (choice < 25) { /* a scan, whose readahead runs into the tail */
        for (uint32_t b = 0; b < TAIL; b += 8)
            read_and_check(at, b, 8);
        return;
    }
    if (choice < 32) {
        truncate_tail(at);
        return;
    }
    if (choice < 45) {
        cache_evict(1 + (uint32_t)rand_r(&at->seed) % BLOCKS);
        return;
    }
    bool tail = choice % 3 == 0;
    uint32_t low = tail ? TAIL : 0, high = tail ? BLOCKS : TAIL;
    uint32_t first = low + (uint32_t)rand_r(&at->seed) % (high - low);
    uint32_t count = 1 + (uint32_t)rand_r(&at->seed) % 16;
    if (tail)
        pthread_rwlock_rdlock(&at->state->tail);
    if (choice < 72)
        read_and_check(at, first, count < high - first ? count : high - first);
    else
        write_block(at, first);
    if (tail)
        pthread_rwlock_unlock(&at->state->tail);
}

static void *work(void *argument)
{
    struct place at = {.seed = (unsigned)(uintptr_t)argument};
    for (uint32_t s = 0; s < SEGMENTS; s++) {
        char path[32];
        snprintf(path, sizeof path, "base/5/%u", s);
        at.state = &shared->segments[s];
        at.entry = s;
        at.fd = open(path, O_RDWR);
        CHECK(at.fd >= 0);
        pthread_barrier_wait(&shared->start);
        for (int step = 0; step < STEPS; step++)
            one_step(&at);
        close(at.fd);
    }
    return NULL;
}

static void process(unsigned seed)
{
    pthread_t threads[THREADS];
    for (uintptr_t t = 0; t < THREADS; t++)
        CHECK(pthread_create(&threads[t], NULL, work, (void *)(seed * 100 + t)) == 0);
    for (int t = 0; t < THREADS; t++)
        pthread_join(threads[t], NULL);
}

static void one_round(unsigned seed)
{
    static struct segment segments[SEGMENTS];
    for (uint32_t s = 0; s < SEGMENTS; s++) {
        segments[s] = (struct segment){{1663, 5, s, 0, 0}, BLOCKS};
        for (uint32_t b = 0; b < BLOCKS; b++)
            atomic_store(&shared->segments[s].expected[b], pattern(s, b, 0));
    }
    start_shim(segments, SEGMENTS);
    start_agent();
    pid_t children[PROCESSES];
    for (unsigned p = 0; p < PROCESSES; p++) {
        children[p] = fork();
        if (children[p] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL); /* the others would wait at the barrier for one that failed */
            process(seed * 10 + p);
            exit(0);
        }
    }
    for (int p = 0; p < PROCESSES; p++) {
        int status;
        CHECK(waitpid(-1, &status, 0) > 0 && status == 0);
    }
    for (uint32_t s = 0; s < SEGMENTS; s++) {
        char path[32];
        snprintf(path, sizeof path, "base/5/%u", s);
        struct place at = {.state = &shared->segments[s], .entry = s, .fd = open(path, O_RDWR)};
        for (uint32_t b = 0; b < BLOCKS; b += 16)
            read_and_check(&at, b, 16);
        CHECK(map_all_resident(&map_entries[s], 0, map_nblocks(&map_entries[s])));
        close(at.fd);
    }
    CHECK(atomic_load(&map->waiters) == 0 && atomic_load(&map->errors) == 0);
    uint64_t clean = 0;
    for (uint32_t s = 0; s < SEGMENTS; s++)
        clean += map_count_clean(&map_entries[s]);
    CHECK(atomic_load(&map->clean_blocks) == clean);
    CHECK(atomic_load(&map->blocks_evicted) > SEGMENTS);
    printf("stress: seed %u, %u pages checked, %llu requests, %llu waits, %llu dropped\n", seed, atomic_load(&shared->checked),
           (unsigned long long)atomic_load(&map->fault_requests), (unsigned long long)atomic_load(&map->waits),
           (unsigned long long)atomic_load(&map->blocks_evicted));
    fflush(stdout); /* children inherit what is buffered */
    stop_agent();
    remove_shim();
}

int main(int argc, char **argv)
{
    unsigned rounds = argc > 1 ? (unsigned)atoi(argv[1]) : 3;
    unsigned seed = argc > 2 ? (unsigned)atoi(argv[2]) : 1;
    share_locks();
    slow_down();
    for (unsigned round = 0; round < rounds; round++)
        one_round(seed + round);
    CHECK(atomic_load(&shared->checked) > rounds * SEGMENTS * BLOCKS);
    return 0;
}
