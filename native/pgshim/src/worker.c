/* The cache worker of a compute: keeps clean blocks below their bound, so that backends seldom have to, fetches blocks the agent names, and does what rounds
 * (settle.h) do to the map. It is a process with the map, the key and the agent's socket like every backend; the agent starts it with LAKEBASE_SHIM_WORKER=1.
 *
 * Commands, a line each, on standard input, answered by a line each on standard output: docs/protocols/shim-agent.md, Cache worker.
 * LAKEBASE_SHIM_CACHE_BYTES bounds everything below the data directory; what cannot be dropped counts first. Whatever it says, the file system keeps
 * a part of its space free (FREE_SHARE), as far as dropping clean blocks can do that.
 *
 * Invariants: blocks fetched here carry no mark of use; standard input's end is the worker's end. */
#define _GNU_SOURCE
#include "worker.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "agent_client.h"
#include "cache.h"
#include "fault.h"
#include "fd_table.h"
#include "libc.h"
#include "segment_path.h"
#include "settle.h"

#define TICK_MS 100
#define MEASURE_MS 1000
/* At most this part of the time goes into measuring. */
#define MEASURE_SHARE 20
/* Clean blocks always allowed: below that a compute would only fetch. */
#define BUDGET_BLOCKS_MIN 2048u
/* The file system keeps a twentieth of itself free, at most FREE_BYTES_MAX. */
#define FREE_SHARE 20u
#define FREE_BYTES_MAX ((uint64_t)2 << 30)
/* The worker begins this far below the bound. */
#define MARGIN_BLOCKS(budget) ((budget) / 32 + 16)

static uint64_t cache_bytes; /* 0: bounded by free space alone */
static uint64_t measured;

static int add_file(const char *path, const struct stat *st, int type, struct FTW *where)
{
    (void)path;
    (void)where;
    if (type == FTW_F)
        measured += (uint64_t)st->st_blocks * 512;
    return 0;
}

static uint64_t less(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

/* The bound on clean blocks, from what else there is. */
static void measure(void)
{
    struct statvfs fs;
    measured = 0;
    nftw(segment_path_datadir(), add_file, 16, FTW_PHYS);
    atomic_store(&map->scratch_bytes, measured);
    uint64_t clean = atomic_load(&map->clean_blocks);
    uint64_t other = less(measured, clean * BLCKSZ);
    uint64_t budget = cache_bytes == 0 ? UINT64_MAX : less(cache_bytes, other) / BLCKSZ;
    if (statvfs(segment_path_datadir(), &fs) == 0) {
        uint64_t total = (uint64_t)fs.f_blocks * fs.f_frsize, free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
        uint64_t keep = total / FREE_SHARE < FREE_BYTES_MAX ? total / FREE_SHARE : FREE_BYTES_MAX;
        uint64_t by_space = free_bytes >= keep ? clean + (free_bytes - keep) / BLCKSZ : less(clean, (keep - free_bytes) / BLCKSZ);
        budget = budget < by_space ? budget : by_space;
    }
    atomic_store(&map->clean_budget, budget > BUDGET_BLOCKS_MIN ? budget : BUDGET_BLOCKS_MIN);
}

static void keep_below(void)
{
    uint64_t budget = atomic_load(&map->clean_budget), clean = atomic_load(&map->clean_blocks);
    uint64_t goal = less(budget, MARGIN_BLOCKS(budget));
    if (budget != 0 && clean > goal)
        cache_evict(clean - goal < UINT32_MAX ? (uint32_t)(clean - goal) : UINT32_MAX);
}

static void tick(void)
{
    static int64_t next_measure;
    int64_t now = now_ms();
    if (now >= next_measure) {
        measure();
        int64_t took = now_ms() - now;
        next_measure = now + (took * MEASURE_SHARE > MEASURE_MS ? took * MEASURE_SHARE : MEASURE_MS);
    }
    keep_below();
}

/* Kept open from one command to the next: they come in the order of the segments. */
static int open_entry(uint32_t index)
{
    static int fd = -1;
    static uint32_t of = UINT32_MAX;
    if (fd >= 0 && of == index && fd_table_entry(fd) != NULL)
        return fd;
    if (fd >= 0)
        close(fd);
    char path[PATH_MAX + 192], name[160];
    fd = -1;
    of = index;
    if (segment_format(&map_entries[index], name, sizeof name) == 0)
        return -1;
    snprintf(path, sizeof path, "%s/%s", segment_path_datadir(), name);
    if (!map_is_dropped(&map_entries[index]))
        fd = open(path, O_RDWR | O_CLOEXEC);
    return fd;
}

static const char *fetch(unsigned index, unsigned first, unsigned count)
{
    static char answer[32];
    if (index >= map_length() || count == 0 || count > FETCH_BLOCKS_MAX)
        return "error 22";
    struct map_entry *entry = &map_entries[index];
    uint32_t nblocks = map_nblocks(entry);
    uint64_t budget = atomic_load(&map->clean_budget);
    if (budget != 0 && atomic_load(&map->clean_blocks) + count > less(budget, MARGIN_BLOCKS(budget)))
        return "full";
    int fd = first < nblocks ? open_entry(index) : -1;
    if (fd < 0 || fd_table_entry(fd) != entry)
        return "ok"; /* gone meanwhile */
    uint32_t end = first + count < nblocks ? first + count : nblocks;
    int error = fault_blocks(entry, fd, (struct block_range){first, end});
    if (error == 0) {
        map_count(&map->blocks_prefetched, end - first);
        return "ok";
    }
    snprintf(answer, sizeof answer, "error %d", error);
    return answer;
}

/* The round this process began, and where its sweeps are. */
static uint64_t own_round;
static uint32_t next_entry;

static const char *begin(void)
{
    static char answer[32];
    own_round = settle_begin();
    if (own_round == 0)
        return "busy";
    snprintf(answer, sizeof answer, "ok %llu", (unsigned long long)own_round);
    return answer;
}

static const char *open_round(void)
{
    settle_open();
    next_entry = 0;
    return "ok";
}

static const char *next(void)
{
    static char answer[32];
    while (next_entry < map_length() && !settle_covers(&map_entries[next_entry]))
        next_entry++;
    if (next_entry >= map_length())
        return "end";
    snprintf(answer, sizeof answer, "entry %u", next_entry++);
    return answer;
}

static const char *sweep(unsigned index, unsigned limit, const struct settle_rule *rule)
{
    static char answer[32];
    if (index >= map_length())
        return "error 22";
    struct map_entry *entry = &map_entries[index];
    int fd = settle_covers(entry) ? open_entry(index) : -1;
    uint32_t settled = fd >= 0 && fd_table_entry(fd) == entry ? settle_sweep(entry, fd, limit, rule) : 0;
    snprintf(answer, sizeof answer, "done %u", settled);
    return answer;
}

static const char *answer_to(const char *line)
{
    unsigned index, first, count, open_ones;
    unsigned long long round, lsn;
    struct settle_rule rule;
    if (sscanf(line, "fetch %u %u %u", &index, &first, &count) == 3)
        return fetch(index, first, count);
    if (strcmp(line, "begin") == 0)
        return begin();
    const char *space = strchr(line, ' ');
    if (space == NULL || sscanf(space, " %llu", &round) != 1)
        return "error 22";
    if (round == 0 || round != own_round)
        return "error 116";
    if (strncmp(line, "open ", 5) == 0)
        return open_round();
    if (strncmp(line, "next ", 5) == 0)
        return next();
    if (sscanf(line, "sweep %llu %u %u %llu %u %u", &round, &index, &count, &lsn, &open_ones, &rule.horizon) != 6)
        return "error 22";
    rule.lsn = lsn;
    rule.open = open_ones != 0;
    return sweep(index, count, &rule);
}

static void command(const char *line)
{
    const char *answer = answer_to(line);
    char text[64];
    int length = snprintf(text, sizeof text, "%s\n", answer);
    if (real.write(STDOUT_FILENO, text, (size_t)length) != length)
        _exit(0);
}

int worker_wanted(void)
{
    return getenv("LAKEBASE_SHIM_WORKER") != NULL;
}

void worker_run(void)
{
    char line[128];
    size_t length = 0;
    const char *bytes = getenv("LAKEBASE_SHIM_CACHE_BYTES");
    cache_bytes = bytes == NULL ? 0 : strtoull(bytes, NULL, 10);
    agent_background = true;
    prctl(PR_SET_NAME, "lakebase-cache");
    for (;;) {
        tick();
        struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
        if (poll(&input, 1, TICK_MS) <= 0)
            continue;
        ssize_t n = real.read(STDIN_FILENO, line + length, sizeof line - 1 - length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0 || length + (size_t)n == sizeof line - 1)
            _exit(0);
        length += (size_t)n;
        line[length] = '\0';
        for (char *end; (end = memchr(line, '\n', length)) != NULL;) {
            *end = '\0';
            command(line);
            length -= (size_t)(end + 1 - line);
            memmove(line, end + 1, length + 1);
        }
    }
}
