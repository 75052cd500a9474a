/* Rounds step by step: the gate, what is adopted and what is not, names that come and go, and blocks that stay. */
#include "harness.h"

#include "added.h"
#include "adopt.h"
#include "cache.h"
#include "fd_table.h"
#include "gate.h"
#include "libc.h"
#include "settle.h"

#define N 100
static const struct segment segments[] = {{{1663, 5, 1, 0, 0}, N}, {{1663, 5, 2, 0, 0}, 0}, {{1663, 5, 3, 3, 0}, 1}};
static char page[BLCKSZ];

static bool any_page(const unsigned char *bytes, const struct settle_rule *rule)
{
    (void)bytes;
    (void)rule;
    return true;
}

/* Storage has version 1 of everything. */
static uint64_t second_word(uint32_t entry, uint32_t block)
{
    return pattern(map_entries[entry].rel, block, 1);
}

static void begin(void)
{
    start_shim(segments, 3);
    stored_word = second_word;
    settle_judge = any_page;
    start_agent();
}

static void end(void)
{
    stop_agent();
    remove_shim();
}

static void write_blocks(int fd, uint32_t rel, uint32_t first, uint32_t last)
{
    for (uint32_t block = first; block < last; block++) {
        fill_page(page, pattern(rel, block, 1));
        CHECK(pwrite(fd, page, BLCKSZ, (off_t)block * BLCKSZ) == BLCKSZ);
    }
}

static int create(const char *path, uint32_t rel, uint32_t blocks)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
    CHECK(fd >= 0);
    write_blocks(fd, rel, 0, blocks);
    return fd;
}

static void check_blocks(int fd, uint32_t rel, uint32_t first, uint32_t last)
{
    for (uint32_t block = first; block < last; block++)
        CHECK(pread(fd, page, BLCKSZ, (off_t)block * BLCKSZ) == BLCKSZ && page_word(page) == pattern(rel, block, 1));
}

static struct map_entry *entry_of(uint32_t rel, uint16_t segno)
{
    int32_t index = map_find(&(struct segment_name){1663, 5, rel, 0, segno});
    return index < 0 ? NULL : &map_entries[index];
}

static uint32_t sweep(struct map_entry *entry, int fd, uint32_t limit)
{
    return settle_sweep(entry, fd, limit, &(struct settle_rule){.lsn = UINT64_MAX});
}

static void adopts(void)
{
    begin();
    int known = open("base/5/1", O_RDWR), empty = open("base/5/2", O_RDWR), fresh = create("base/5/7", 7, 40);
    int second = create("base/5/7.1", 8, 16);
    close(create("base/5/8", 8, 15));         /* too few */
    close(create("base/5/7_fsm", 7, 40));     /* not a main fork */
    close(create("base/5/t3_9", 9, 40));      /* temporary */
    close(create("base/5/3", 3, 40));         /* unlogged, as the map says */
    close(create("base/5/10", 10, 40));       /* unlogged, as the disk says */
    close(create("base/5/10_init", 10, 1));
    write_blocks(known, 1, N, 2 * N);
    write_blocks(empty, 2, 0, 5000);
    CHECK(map_length() == 3 && settle_begin() == 1);
    CHECK(map_length() == 5 && entry_of(7, 0) != NULL && entry_of(7, 1) != NULL && map_nblocks(entry_of(7, 0)) == 40 && map_nblocks(entry_of(7, 1)) == 16);
    CHECK(map_nblocks(entry_of(1, 0)) == 2 * N && map_nblocks(entry_of(2, 0)) == 5000 && atomic_load(&map->blocks_adopted) == 40 + 16 + N + 5000);
    CHECK(entry_of(8, 0) == NULL && entry_of(10, 0) == NULL && map_find(&(struct segment_name){1663, 5, 7, 1, 0}) == -1);
    CHECK(map_all_written(entry_of(1, 0), N, 2 * N) && map_state(entry_of(1, 0), 0) == BLOCK_ABSENT && !map_is_young(entry_of(2, 0), 4999));
    CHECK(settle_begin() == 2 && map_length() == 5); /* once is enough */
    settle_open();
    /* The limit is what storage has; a write of after the mark stays. */
    write_blocks(empty, 2, 17, 18);
    CHECK(sweep(entry_of(2, 0), empty, 4000) == 3999 && atomic_load(&map->clean_blocks) == 3999 && map_state(entry_of(2, 0), 17) == BLOCK_WRITTEN);
    CHECK(sweep(entry_of(7, 0), fresh, 40) == 40 && sweep(entry_of(7, 0), fresh, 40) == 0 && sweep(entry_of(1, 0), known, UINT32_MAX) == N);
    while (atomic_load(&map->clean_blocks) > 0)
        CHECK(cache_evict(UINT32_MAX) > 0);
    CHECK(map_state(entry_of(7, 0), 39) == BLOCK_ABSENT && map_state(entry_of(7, 1), 15) == BLOCK_WRITTEN);
    /* Through descriptors of before, which had no entry then. */
    uint64_t fetched = atomic_load(&map->blocks_fetched);
    check_blocks(fresh, 7, 0, 40);
    check_blocks(second, 8, 0, 16);
    check_blocks(known, 1, N, 2 * N);
    check_blocks(empty, 2, 0, 5000);
    CHECK(atomic_load(&map->blocks_fetched) >= fetched + 40 + N + 3999 && fd_table_entry(fresh) == entry_of(7, 0));
    end();
}

static void names_come_and_go(void)
{
    begin();
    int fd = create("base/5/7", 7, 40), kept = create("base/5/8", 8, 40), again, copy = dup(kept);
    CHECK(settle_begin() == 1 && map_length() == 5);
    /* A file that lost its name before its descriptor was used again is nobody's. */
    CHECK(unlink("base/5/7") == 0 && map_is_dropped(entry_of(7, 0)) && fd_table_entry(fd) == NULL);
    check_blocks(fd, 7, 0, 40);
    again = create("base/5/7", 7, 50);
    CHECK(settle_begin() == 2 && map_length() == 5 && fd_table_entry(again) == NULL);
    check_blocks(again, 7, 0, 50);
    /* A copy of a descriptor remembers the name too. */
    CHECK(fd_table_entry(copy) == entry_of(8, 0) && fd_table_entry(kept) == entry_of(8, 0));
    settle_open();
    CHECK(ftruncate(copy, 20 * BLCKSZ) == 0 && map_nblocks(entry_of(8, 0)) == 20 && sweep(entry_of(8, 0), kept, 40) == 20);
    write_blocks(kept, 8, 20, 60);
    CHECK(settle_begin() == 3 && map_nblocks(entry_of(8, 0)) == 60 && map_all_written(entry_of(8, 0), 20, 60));
    settle_open();
    CHECK(sweep(entry_of(8, 0), kept, 60) == 40 && cache_evict(UINT32_MAX) == 60);
    /* Renamed: whole, and local from then on. */
    CHECK(rename("base/5/8", "base/5/9") == 0 && map_is_dropped(entry_of(8, 0)));
    int renamed = open("base/5/9", O_RDWR);
    check_blocks(renamed, 8, 0, 60);
    CHECK(fd_table_entry(renamed) == NULL && atomic_load(&map->inside) == 0);
    end();
}

static void no_more_room(void)
{
    begin();
    for (uint32_t rel = 100; rel < 100 + ADDED_MAX + 5; rel++) {
        char path[32];
        snprintf(path, sizeof path, "base/5/%u", rel);
        close(create(path, rel, 16));
    }
    CHECK(settle_begin() == 1 && atomic_load(&map->added) == ADDED_MAX && settle_begin() == 2 && atomic_load(&map->added) == ADDED_MAX);
    uint32_t found = 0;
    for (uint32_t rel = 100; rel < 100 + ADDED_MAX + 5; rel++)
        found += entry_of(rel, 0) != NULL && entry_of(rel, 0)->rel == rel;
    CHECK(found == ADDED_MAX);
    end();
}

/* What happens right before the bytes of a read, or of a write, move. */
static void (*meanwhile)(void);
static ssize_t (*libc_pread)(int, void *, size_t, off_t);
static ssize_t (*libc_pwrite)(int, const void *, size_t, off_t);

static void happen(void)
{
    void (*what)(void) = meanwhile;
    meanwhile = NULL;
    if (what != NULL)
        what();
}

static ssize_t late_pread(int from, void *bytes, size_t length, off_t offset)
{
    happen();
    return libc_pread(from, bytes, length, offset);
}

static ssize_t late_pwrite(int to, const void *bytes, size_t length, off_t offset)
{
    happen();
    return libc_pwrite(to, bytes, length, offset);
}

static int swept_fd;
static struct segment_name swept;

static void whole_round(void)
{
    CHECK(settle_begin() != 0);
    settle_open();
    int32_t index = map_find(&swept);
    CHECK(index >= 0 && sweep(&map_entries[index], swept_fd, UINT32_MAX) > 0);
    while (atomic_load(&map->clean_blocks) > 0)
        CHECK(cache_evict(UINT32_MAX) > 0);
}

static void no_round(void)
{
    CHECK(settle_begin() == 0);
}

/* A whole round, with adoption and dropping, between a look at the map and the read that follows; and none between a look and a write. */
static void beside_reads_and_writes(void)
{
    begin();
    int fresh = create("base/5/7", 7, 40), grown = open("base/5/1", O_RDWR), fresh_too = create("base/5/8", 8, 40);
    write_blocks(grown, 1, N, 2 * N);
    libc_pread = real.pread;
    libc_pwrite = real.pwrite;
    real.pread = late_pread;
    real.pwrite = late_pwrite;
    swept = (struct segment_name){1663, 5, 7, 0, 0};
    swept_fd = fresh;
    meanwhile = no_round;
    write_blocks(fresh, 7, 5, 6);
    CHECK(meanwhile == NULL && atomic_load(&map->added) == 0 && map_nblocks(entry_of(1, 0)) == N);
    meanwhile = whole_round;
    check_blocks(fresh, 7, 5, 6);
    CHECK(meanwhile == NULL && atomic_load(&map->added) == 2);
    write_blocks(grown, 1, 2 * N, 3 * N);
    swept = (struct segment_name){1663, 5, 1, 0, 0};
    swept_fd = grown;
    meanwhile = whole_round;
    check_blocks(grown, 1, 2 * N + 7, 2 * N + 8);
    CHECK(meanwhile == NULL && map_nblocks(entry_of(1, 0)) == 3 * N);
    meanwhile = no_round;
    write_blocks(grown, 1, 2 * N + 7, 2 * N + 8);
    meanwhile = no_round;
    write_blocks(grown, 1, 3 * N, 3 * N + 20);
    CHECK(meanwhile == NULL && map_nblocks(entry_of(1, 0)) == 3 * N);
    real.pread = libc_pread;
    real.pwrite = libc_pwrite;
    check_blocks(fresh, 7, 0, 40);
    check_blocks(fresh_too, 8, 0, 40);
    check_blocks(grown, 1, N, 3 * N + 20);
    end();
}

static pid_t child(void (*work)(void))
{
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        work();
        pause();
    }
    return pid;
}

static void close_it(void)
{
    CHECK(gate_close());
}

static void reap(pid_t pid)
{
    kill(pid, SIGKILL);
    CHECK(waitpid(pid, NULL, 0) == pid);
}

static void the_gate(void)
{
    begin();
    /* Nested, and not closable while somebody is inside. */
    pid_t inside = child(gate_enter);
    while (atomic_load(&map->inside) == 0)
        sched_yield();
    CHECK(!gate_close() && atomic_load(&map->gate) == 0 && settle_begin() == 0);
    gate_enter();
    gate_enter();
    gate_leave();
    CHECK(atomic_load(&map->inside) == 2);
    gate_leave();
    reap(inside);
    /* One that was killed inside: no rounds any more, everything else goes on. */
    CHECK(atomic_load(&map->inside) == 1 && settle_begin() == 0);
    int fd = open("base/5/1", O_RDWR);
    write_blocks(fd, 1, 3, 4);
    atomic_store(&map->inside, 0);
    /* Closed by one that was killed: whoever wants to enter opens it, and so does the next that closes it. */
    for (int by_closing = 0; by_closing < 2; by_closing++) {
        pid_t closer = child(close_it);
        while (atomic_load(&map->gate) == 0)
            sched_yield();
        CHECK(!gate_close() && atomic_load(&map->gate) == (uint32_t)closer);
        reap(closer);
        if (by_closing == 0) {
            write_blocks(fd, 1, 3, 4);
        } else {
            CHECK(gate_close());
            gate_open();
        }
        CHECK(atomic_load(&map->gate) == 0 && atomic_load(&map->inside) == 0 && atomic_load(&map->waiters) == 0);
    }
    end();
}

int main(void)
{
    adopts();
    names_come_and_go();
    no_more_room();
    beside_reads_and_writes();
    the_gate();
    return 0;
}
