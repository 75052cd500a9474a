/* Several processes, two threads each, go through the same segments together, reading, writing and truncating the same blocks while faults are under way,
 * clean blocks are being dropped, and rounds adopt what is new and make clean ones of those storage has got meanwhile. Of three segments one is known whole at
 * the start, one was shorter then, one is a new file.
 * As in Postgres, a lock per block orders writers of that block (buffer content lock), and truncation excludes users of the tail (table
 * lock) but not the readahead of everybody else into it. Checked: a read never returns anything older than the last finished write, nothing but
 * the old or the new page of a write under way, never a page of before a truncation. */
#include "harness.h"

#include <sched.h>

#include "cache.h"
#include "libc.h"
#include "settle.h"

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
    _Atomic uint64_t stored[BLOCKS];   /* what storage has */
};

struct shared {
    pthread_barrier_t start;
    _Atomic uint32_t checked;
    _Atomic uint32_t over;
    _Atomic uint32_t rounds;
    struct segment_state segments[SEGMENTS];
};

static struct shared *shared;

struct place {
    struct segment_state *state;
    uint32_t segment;
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

static bool is_version(uint64_t word, uint32_t segment, uint32_t block)
{
    return word >> 48 == segment && (word >> 24 & 0xffffff) == block && (word & 1) != 0;
}

/* Of some versions storage gets only something like them, as of what is not in WAL: pages that have them must stay. */
static bool is_lossy(uint64_t word)
{
    return (word >> 1) % 8 == 5;
}

/* Inside a write Postgres reads nothing; here such reads may get what storage has of it already, or half of 16 bytes that are encrypted together. */
static bool may_be_read_inside(uint64_t word, uint64_t pending, uint32_t segment, uint32_t block)
{
    return word == pending || !is_version(word, segment, block) || (is_lossy(pending) && word == (pending ^ 2));
}

/* Outside writes every word is the expected one; inside, the old or the new one, or what only such reads get: never an older one. */
static void check_page(struct place *at, uint32_t block, const char *page, uint64_t sequence, uint64_t expected, uint64_t pending)
{
    bool writing = sequence % 2 != 0;
    for (size_t i = 0; i < BLCKSZ; i += 8) {
        uint64_t word;
        memcpy(&word, page + i, 8);
        if (word == expected || (writing && may_be_read_inside(word, pending, at->segment, block)))
            continue;
        fprintf(stderr, "segment %u block %u: %llx at byte %zu, expected %llx%s %llx\n", at->segment, block, (unsigned long long)word, i,
                (unsigned long long)expected, writing ? " or" : ", before it", (unsigned long long)pending);
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
    uint64_t word = pattern(at->segment, block, (uint32_t)rand_r(&at->seed) % 0x7fffff + 1);
    atomic_store(&s->pending[block], word);
    atomic_fetch_add(&s->sequence[block], 1);
    fill_page(page, word);
    if (rand_r(&at->seed) % 8 == 0) { /* in two halves: each is a write of part of a block */
        CHECK(pwrite(at->fd, page, BLCKSZ / 2, (off_t)block * BLCKSZ) == BLCKSZ / 2);
        CHECK(pwrite(at->fd, page, BLCKSZ / 2, (off_t)block * BLCKSZ + BLCKSZ / 2) == BLCKSZ / 2);
    } else {
        CHECK(pwrite(at->fd, page, BLCKSZ, (off_t)block * BLCKSZ) == BLCKSZ);
    }
    for (int i = rand_r(&at->seed) % 4; i > 0; i--)
        sched_yield();
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
    for (uint32_t b = to; b < BLOCKS; b++) {
        atomic_store(&s->pending[b], 0);
        atomic_fetch_add(&s->sequence[b], 1);
    }
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
        at.segment = s;
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

static uint64_t word_in_storage(uint32_t entry, uint32_t block)
{
    return atomic_load(&shared->segments[map_entries[entry].rel].stored[block]);
}

static bool may_go(const unsigned char *page, const struct settle_rule *rule)
{
    (void)rule;
    sched_yield();
    for (size_t i = 0; i < BLCKSZ; i += 8) {
        uint64_t word;
        memcpy(&word, page + i, 8);
        if (is_lossy(word))
            return false;
    }
    return true;
}

/* What WAL says of a block: it has a write before the file has it (WAL first), also one whose caller has not got on yet. */
static uint64_t logged_word(struct segment_state *s, uint32_t block)
{
    uint64_t word = atomic_load(&s->sequence[block]) % 2 != 0 ? atomic_load(&s->pending[block]) : atomic_load(&s->expected[block]);
    return is_lossy(word) ? word ^ 2 : word;
}

/* As agent and cache worker do it: what was written before the round reaches storage between its beginning and its sweep. */
static void settle_round(void)
{
    struct settle_rule rule = {.lsn = UINT64_MAX};
    if (settle_begin() == 0)
        return;
    for (uint32_t s = 0; s < SEGMENTS; s++)
        for (uint32_t b = 0; b < BLOCKS; b++)
            atomic_store(&shared->segments[s].stored[b], logged_word(&shared->segments[s], b));
    settle_open();
    for (uint32_t e = 0; e < map_length(); e++) {
        if (!settle_covers(&map_entries[e]))
            continue;
        char path[32];
        snprintf(path, sizeof path, "base/5/%u", map_entries[e].rel);
        int fd = open(path, O_RDWR);
        CHECK(fd >= 0);
        if (settle_sweep(&map_entries[e], fd, BLOCKS, &rule) > 0)
            cache_evict(BLOCKS);
        close(fd);
        if (e % 8 == 0)
            usleep(100); /* the gate is not closed all the time */
    }
    atomic_fetch_add(&shared->rounds, 1);
}

static pid_t in_child(void (*work_of)(unsigned), unsigned argument)
{
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* the others would wait at the barrier for one that failed */
        work_of(argument);
        exit(0);
    }
    return pid;
}

static void run_rounds(unsigned unused)
{
    (void)unused;
    settle_judge = may_go;
    while (!atomic_load(&shared->over))
        settle_round();
}

/* How much of a segment is known at the start. */
static uint32_t known_blocks(uint32_t segment)
{
    return segment % 3 == 0 ? BLOCKS : segment % 3 == 1 ? 24 : 0;
}

/* What Postgres has made since. */
static void write_unknown(void)
{
    static char page[BLCKSZ];
    for (uint32_t s = 0; s < SEGMENTS; s++) {
        char path[32];
        snprintf(path, sizeof path, "base/5/%u", s);
        int fd = open(path, O_RDWR | O_CREAT, 0600);
        for (uint32_t b = known_blocks(s); b < BLOCKS; b++) {
            fill_page(page, pattern(s, b, 0));
            CHECK(pwrite(fd, page, BLCKSZ, (off_t)b * BLCKSZ) == BLCKSZ);
        }
        close(fd);
    }
}

static void check_end(unsigned seed)
{
    uint64_t clean = 0;
    for (uint32_t s = 0; s < SEGMENTS; s++) {
        char path[32];
        snprintf(path, sizeof path, "base/5/%u", s);
        struct place at = {.state = &shared->segments[s], .segment = s, .fd = open(path, O_RDWR)};
        for (uint32_t b = 0; b < BLOCKS; b += 16)
            read_and_check(&at, b, 16);
        close(at.fd);
    }
    for (uint32_t e = 0; e < map_length(); e++) {
        CHECK(map_all_resident(&map_entries[e], 0, map_nblocks(&map_entries[e])));
        clean += map_count_clean(&map_entries[e]);
    }
    CHECK(atomic_load(&map->waiters) == 0 && atomic_load(&map->errors) == 0 && atomic_load(&map->inside) == 0 && atomic_load(&map->gate) == 0);
    CHECK(atomic_load(&map->clean_blocks) == clean);
    CHECK(atomic_load(&map->blocks_evicted) > SEGMENTS && atomic_load(&map->blocks_settled) > SEGMENTS);
    CHECK(atomic_load(&map->added) == SEGMENTS / 3 && atomic_load(&map->blocks_adopted) > SEGMENTS / 3 * (BLOCKS + 40));
    printf("stress: seed %u, %u pages checked, %u rounds, %llu adopted, %llu settled, %llu requests, %llu waits, %llu dropped\n", seed,
           atomic_load(&shared->checked), atomic_load(&shared->rounds), (unsigned long long)atomic_load(&map->blocks_adopted),
           (unsigned long long)atomic_load(&map->blocks_settled), (unsigned long long)atomic_load(&map->fault_requests),
           (unsigned long long)atomic_load(&map->waits), (unsigned long long)atomic_load(&map->blocks_evicted));
    fflush(stdout); /* children inherit what is buffered */
}

static void one_round(unsigned seed)
{
    static struct segment segments[SEGMENTS];
    uint32_t known = 0;
    for (uint32_t s = 0; s < SEGMENTS; s++) {
        if (known_blocks(s) > 0)
            segments[known++] = (struct segment){{1663, 5, s, 0, 0}, known_blocks(s)};
        for (uint32_t b = 0; b < BLOCKS; b++) {
            atomic_store(&shared->segments[s].expected[b], pattern(s, b, 0));
            atomic_store(&shared->segments[s].stored[b], pattern(s, b, 0));
        }
    }
    start_shim(segments, known);
    write_unknown();
    stored_word = word_in_storage;
    atomic_store(&knobs->late_us, 8000);
    start_agent();
    atomic_store(&shared->over, 0);
    pid_t settler = in_child(run_rounds, 0);
    for (unsigned p = 0; p < PROCESSES; p++)
        in_child(process, seed * 10 + p);
    /* Whoever fails is the first to end: the others wait for it at the barrier. */
    for (int status, left = PROCESSES; left > 0; left--)
        CHECK(waitpid(-1, &status, 0) > 0 && status == 0);
    atomic_store(&shared->over, 1);
    int status;
    CHECK(waitpid(settler, &status, 0) > 0 && status == 0);
    check_end(seed);
    stop_agent();
    remove_shim();
}

int main(int argc, char **argv)
{
    unsigned rounds = argc > 1 ? (unsigned)atoi(argv[1]) : 2;
    unsigned seed = argc > 2 ? (unsigned)atoi(argv[2]) : 1;
    share_locks();
    slow_down();
    for (unsigned round = 0; round < rounds; round++)
        one_round(seed + round);
    CHECK(atomic_load(&shared->checked) > rounds * SEGMENTS * BLOCKS);
    return 0;
}
