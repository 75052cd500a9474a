/* The bound on clean blocks, room on a full disk, the order in which blocks go, and writes of WAL that take their time. */
#include "harness.h"

#include <sys/resource.h>

#include "cache.h"
#include "libc.h"
#include "worker.h"

#define N 2000
static const struct segment segments[] = {{{1663, 5, 1, 0, 0}, N}, {{1663, 5, 2, 0, 0}, 3}, {{1663, 5, 3, 0, 0}, 0}, {{1663, 5, 4, 0, 0}, N}};

static char page[BLCKSZ];
static char many[64 * BLCKSZ];

static void begin(void)
{
    start_shim(segments, 4);
    start_agent();
    CHECK(mkdir("pg_wal", 0700) == 0);
}

static void end(void)
{
    stop_agent();
    remove_shim();
}

static uint64_t read_block(int fd, uint32_t block)
{
    CHECK(pread(fd, page, BLCKSZ, (off_t)block * BLCKSZ) == BLCKSZ);
    return page_word(page);
}

static uint64_t used(int fd)
{
    struct stat st;
    CHECK(fstat(fd, &st) == 0);
    return (uint64_t)st.st_blocks * 512;
}

static void bound(void)
{
    begin();
    int fd = open("base/5/4", O_RDWR);
    atomic_store(&map->clean_budget, 500);
    for (int round = 0; round < 2; round++)
        for (uint32_t block = 0; block < N; block++)
            CHECK(read_block(fd, block) == pattern(3, block, 0));
    CHECK(atomic_load(&map->clean_blocks) <= 516 && atomic_load(&map->clean_blocks) == map_count_clean(&map_entries[3]));
    CHECK(atomic_load(&map->blocks_evicted) >= 2 * N - 516 && used(fd) <= 520 * BLCKSZ);
    /* Written blocks stay, whatever the bound. */
    for (uint32_t block = 0; block < 1000; block++) {
        fill_page(page, pattern(3, block, 1));
        CHECK(pwrite(fd, page, BLCKSZ, (off_t)block * BLCKSZ) == BLCKSZ);
    }
    for (uint32_t block = 0; block < N; block++)
        CHECK(read_block(fd, block) == pattern(3, block, block < 1000));
    CHECK(cache_evict(UINT32_MAX) > 0 && atomic_load(&map->clean_blocks) == 0 && map_all_written(&map_entries[3], 0, 1000));
    for (uint32_t block = 0; block < N; block++)
        CHECK(read_block(fd, block) == pattern(3, block, block < 1000));
    CHECK(cache_evict(1) == 1 || atomic_load(&map->blocks_evicted) > 0);
    end();
}

static void used_blocks_last(void)
{
    begin();
    int fd = open("base/5/1", O_RDWR);
    for (uint32_t block = 0; block < N; block++)
        CHECK(read_block(fd, block) == pattern(0, block, 0));
    CHECK(cache_evict(1) > 0); /* once around, all had been used */
    for (uint32_t block = 1000; block < 1100; block++)
        CHECK(map_state(map_entries, block) != BLOCK_RESIDENT || read_block(fd, block) == pattern(0, block, 0));
    while (atomic_load(&map->clean_blocks) > 200)
        CHECK(cache_evict(1) > 0);
    uint32_t kept = 0;
    for (uint32_t block = 1000; block < 1100; block++)
        kept += map_state(map_entries, block) == BLOCK_RESIDENT;
    CHECK(kept == 100);
    /* Those of a dropped relation are nobody's any more. */
    uint64_t before = atomic_load(&map->clean_blocks);
    CHECK(unlink("base/5/1") == 0 && before > 0 && atomic_load(&map->clean_blocks) == 0 && cache_evict(1) == 0);
    end();
}

/* A disk that is full until blocks have been dropped. */
static ssize_t (*libc_pwrite)(int, const void *, size_t, off_t);
static _Atomic uint32_t full_count;

static ssize_t full_pwrite(int to, const void *bytes, size_t length, off_t offset)
{
    uint32_t left = atomic_load(&full_count);
    if (left > 0 && atomic_load(&map->blocks_evicted) == 0) {
        errno = left % 2 == 0 ? ENOSPC : EDQUOT;
        return -1;
    }
    return libc_pwrite(to, bytes, length, offset);
}

static void full_disk(void)
{
    begin();
    libc_pwrite = real.pwrite;
    real.pwrite = full_pwrite;
    int fd = open("base/5/1", O_RDWR), wal = open("pg_wal/000000010000000A00000003", O_RDWR | O_CREAT, 0600);
    /* Nothing to drop: Postgres gets what it would get. */
    atomic_store(&full_count, 1);
    CHECK(pwrite(wal, many, BLCKSZ, 0) == -1 && errno == EDQUOT && pwrite(fd, many, BLCKSZ, 0) == -1 && errno == EDQUOT);
    /* Reads go on: what cannot be kept is not. */
    CHECK(read_block(fd, 0) == pattern(0, 0, 0) && map_state(map_entries, 0) == BLOCK_ABSENT);
    struct iovec vector[2] = {{many, 3 * BLCKSZ - 100}, {many + 3 * BLCKSZ - 100, 5 * BLCKSZ + 100}};
    CHECK(preadv(fd, vector, 2, (N - 6) * BLCKSZ) == 6 * BLCKSZ && atomic_load(&map->clean_blocks) == 0);
    for (uint32_t i = 0; i < 6; i++)
        CHECK(page_word(many + i * BLCKSZ) == pattern(0, N - 6 + i, 0));
    CHECK(pread(fd, many, 100, 5 * BLCKSZ + 8) == 100 && *(uint64_t *)(void *)many == pattern(0, 5, 0));
    memset(many, 0, sizeof many);
    for (uint32_t n = 1; n <= 4; n++) {
        atomic_store(&full_count, 0);
        for (uint32_t block = 0; block < 1000; block++)
            CHECK(read_block(fd, block) == pattern(0, block, 0));
        atomic_store(&map->blocks_evicted, 0);
        atomic_store(&full_count, n);
        if (n == 1)
            CHECK(pwrite(wal, many, BLCKSZ, 0) == BLCKSZ);
        else if (n == 2)
            CHECK(read_block(fd, 1500) == pattern(0, 1500, 0));
        else if (n == 3)
            CHECK(pwrite(fd, many, BLCKSZ, 1600 * BLCKSZ) == BLCKSZ && map_state(map_entries, 1600) == BLOCK_WRITTEN);
        else
            CHECK(pwrite(fd, many, BLCKSZ, N * BLCKSZ) == BLCKSZ);
        CHECK(atomic_load(&map->blocks_evicted) > 0 && atomic_load(&map->rooms_made) == n);
    }
    real.pwrite = libc_pwrite;
    for (uint32_t block = 0; block < 1000; block++)
        CHECK(read_block(fd, block) == pattern(0, block, 0));
    end();
}

static void wal(void)
{
    begin();
    int fd = open("pg_wal/000000010000000A00000003", O_RDWR | O_CREAT, 0600);
    CHECK(pwrite(fd, many, BLCKSZ, 2 * BLCKSZ) == BLCKSZ && atomic_load(&map->wal_position) == (uint64_t)0xA03 * (16 << 20) + 3 * BLCKSZ);
    int64_t start = now_ms();
    CHECK(pwrite(fd, many, sizeof many, 3 * BLCKSZ) == sizeof many && atomic_load(&map->wal_slept_ns) == 0);
    atomic_store(&map->wal_delay_ns, 5000000); /* 5 ms a page: ten pages in the longest sleep */
    size_t written = 0;
    for (int calls = 0; written < 20 * BLCKSZ; calls++) {
        ssize_t n = pwrite(fd, many, 20 * BLCKSZ - written, (off_t)written);
        CHECK(n > 0 && n <= 10 * BLCKSZ && calls < 3);
        written += (size_t)n;
    }
    CHECK(now_ms() - start >= 99 && atomic_load(&map->wal_slept_ns) == 100000000);
    CHECK(pread(fd, page, BLCKSZ, 3 * BLCKSZ) == BLCKSZ && page_word(page) == 0);
    atomic_store(&map->wal_delay_ns, 4000000000u); /* whatever the agent says */
    start = now_ms();
    CHECK(pwrite(fd, many, 8, 100) == 8 && now_ms() - start >= 50 && now_ms() - start < 1000);
    /* Other files take no time, and move nothing. */
    uint64_t position = atomic_load(&map->wal_position);
    int other = open("pg_wal/xlogtemp.1", O_RDWR | O_CREAT, 0600), far = open("pg_wal/000000010000000A0000000F.part", O_RDWR | O_CREAT, 0600);
    CHECK(pwrite(other, many, sizeof many, 0) == sizeof many && pwrite(far, many, sizeof many, 0) == sizeof many);
    CHECK(atomic_load(&map->wal_position) == position && atomic_load(&map->wal_slept_ns) == 150000000);
    end();
}

/* A worker as the agent starts it, but forked here: fetches what it is told, up to the bound. */
static void worker(void)
{
    int to[2], from[2];
    begin();
    CHECK(pipe(to) == 0 && pipe(from) == 0);
    pid_t child = fork();
    if (child == 0) {
        dup2(to[0], 0);
        dup2(from[1], 1);
        close(to[1]);
        setenv("LAKEBASE_SHIM_CACHE_BYTES", "25165824", 1); /* 24 MiB: 3072 blocks */
        worker_run();
    }
    CHECK(close(to[0]) == 0 && close(from[1]) == 0);
    FILE *in = fdopen(from[0], "r");
    char line[64];
    bool full = false;
    for (uint32_t at = 0; at < 2 * N && !full; at += 100) {
        CHECK(dprintf(to[1], "fetch %u %u 100\n", at < N ? 0 : 3, at % N) > 0);
        CHECK(fgets(line, sizeof line, in) != NULL);
        full = strcmp(line, "full\n") == 0;
        CHECK(full || strcmp(line, "ok\n") == 0);
    }
    CHECK(full && map_all_resident(map_entries, 0, N) && atomic_load(&map->clean_blocks) > 2500);
    CHECK(dprintf(to[1], "fetch 9 0 1\n") > 0 && fgets(line, sizeof line, in) != NULL && strcmp(line, "error 22\n") == 0);
    CHECK(map_cell(map_entries, 0)->accessed == 0);
    int fd = open("base/5/1", O_RDONLY);
    uint32_t before = atomic_load(&knobs->requests);
    CHECK(read_block(fd, 77) == pattern(0, 77, 0) && atomic_load(&knobs->requests) == before);
    close(to[1]);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    fclose(in);
    end();
}

int main(void)
{
    bound();
    used_blocks_last();
    full_disk();
    wal();
    worker();
    return 0;
}
