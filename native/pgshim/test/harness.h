/* What the tests share: checks, a data directory with a resident map, and a fake agent in a process of its own.
 * The fake agent answers block b of entry e with a page full of pattern(e, b, 0); knobs in shared memory change its mind. */
#ifndef PGSHIM_TEST_HARNESS_H
#define PGSHIM_TEST_HARNESS_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "crypt.h"
#include "resident_map.h"
#include "shim.h"
#include "util.h"

#define CHECK(condition)                                                                     \
    do {                                                                                     \
        if (!(condition)) {                                                                  \
            fprintf(stderr, "%s:%d: not true: %s (errno %d)\n", __FILE__, __LINE__, #condition, errno); \
            exit(1);                                                                         \
        }                                                                                    \
    } while (0)

/* Pages whose every word says which block and version they are: a torn or stale page cannot pass. */
static inline uint64_t pattern(uint32_t entry, uint32_t block, uint32_t version)
{
    return (uint64_t)entry << 48 | (uint64_t)block << 24 | (uint64_t)version << 1 | 1;
}

__attribute__((unused)) static void fill_page(void *page, uint64_t word)
{
    for (size_t i = 0; i < BLCKSZ / 8; i++)
        memcpy((char *)page + i * 8, &word, 8);
}

/* The word every part of the page holds; all ones when they differ. */
__attribute__((unused)) static uint64_t page_word(const void *page)
{
    uint64_t first, word;
    memcpy(&first, page, 8);
    for (size_t i = 1; i < BLCKSZ / 8; i++) {
        memcpy(&word, (const char *)page + i * 8, 8);
        if (word != first)
            return UINT64_MAX;
    }
    return first;
}

struct agent_knobs {
    _Atomic uint32_t requests;
    _Atomic uint32_t last_first;
    _Atomic uint32_t last_count;
    _Atomic uint32_t error;      /* answer every request with this errno */
    _Atomic uint32_t hang_up;    /* close this many connections instead of answering */
    _Atomic uint32_t short_by;   /* leave out this many blocks of an answer */
    _Atomic uint32_t slow_parts; /* send answers in small parts */
    _Atomic uint32_t late_us;    /* answers may be so much older than their arrival */
};

static struct agent_knobs *knobs;
static pid_t agent_pid;
static char base_directory[64];
static char socket_path[96];
static const char *layout_mode = "1";

/* What storage has now, as the agent reads it. */
static uint64_t first_word(uint32_t entry, uint32_t block)
{
    return pattern(entry, block, 0);
}
static uint64_t (*stored_word)(uint32_t entry, uint32_t block) = first_word;

__attribute__((unused)) static void *shared_memory(size_t size)
{
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    return at;
}

static bool send_all(int fd, const char *bytes, size_t length, size_t part)
{
    while (length > 0) {
        ssize_t n = send(fd, bytes, length < part ? length : part, MSG_NOSIGNAL);
        if (n <= 0)
            return false;
        bytes += n;
        length -= (size_t)n;
    }
    return true;
}

/* Answers one request; false when the connection is over. */
static bool serve_request(int fd, char *answer)
{
    uint32_t request[8];
    if (recv(fd, request, sizeof request, MSG_WAITALL) != (ssize_t)sizeof request)
        return false;
    uint32_t count = request[3] & 0xffff;
    CHECK(request[0] == 0x4C425251u && count >= 1 && count <= 128);
    atomic_fetch_add(&knobs->requests, 1);
    atomic_store(&knobs->last_first, request[2]);
    atomic_store(&knobs->last_count, count);
    uint32_t left = atomic_load(&knobs->hang_up);
    if (left > 0 && atomic_compare_exchange_strong(&knobs->hang_up, &left, left - 1))
        return false;
    uint32_t error = atomic_load(&knobs->error);
    uint32_t sent = error != 0 ? 0 : count - atomic_load(&knobs->short_by);
    uint32_t head[6] = {0x4C425253u, error, request[4], request[5], sent, 0};
    memcpy(answer, head, 24);
    for (uint32_t i = 0; i < sent; i++)
        fill_page(answer + 24 + (size_t)i * BLCKSZ, stored_word(request[1], request[2] + i));
    uint32_t late = atomic_load(&knobs->late_us);
    if (late > 0 && rand() % 16 == 0)
        usleep((useconds_t)rand() % late);
    return send_all(fd, answer, 24 + (size_t)sent * BLCKSZ, atomic_load(&knobs->slow_parts) ? 1000 : SIZE_MAX);
}

/* One thread for all connections: the thread sanitizer's runtime aborts at times when a forked child makes threads ("dup thread with used id"). */
static void serve(int listener)
{
    static char answer[24 + 128 * BLCKSZ];
    static struct pollfd fds[1024];
    nfds_t n = 1;
    fds[0] = (struct pollfd){.fd = listener, .events = POLLIN};
    for (;;) {
        CHECK(poll(fds, n, -1) > 0 || errno == EINTR);
        for (nfds_t i = n - 1; i > 0; i--)
            if (fds[i].revents != 0 && !serve_request(fds[i].fd, answer)) {
                close(fds[i].fd);
                fds[i] = fds[--n];
            }
        if (fds[0].revents != 0 && n < sizeof fds / sizeof *fds) {
            int fd = accept(listener, NULL, NULL);
            if (fd >= 0)
                fds[n++] = (struct pollfd){.fd = fd, .events = POLLIN};
        }
    }
}

__attribute__((unused)) static void start_agent(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", socket_path);
    unlink(socket_path);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 64) == 0);
    agent_pid = fork();
    CHECK(agent_pid >= 0);
    if (agent_pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failed test leaves nothing behind */
        serve(listener);
    }
    close(listener);
}

__attribute__((unused)) static void stop_agent(void)
{
    kill(agent_pid, SIGKILL);
    CHECK(waitpid(agent_pid, NULL, 0) == agent_pid);
}

struct segment {
    struct segment_name name;
    uint32_t nblocks;
};

#define ADDED_MAX 128u

/* Writes a map of segments that are sorted already, with room for as many again. */
__attribute__((unused)) static void write_map(const char *path, const struct segment *segments, uint32_t n)
{
    struct map_header header = {.magic = MAP_MAGIC, .version = MAP_VERSION, .entry_count = n, .added_max = ADDED_MAX, .areas_max = 2 * ADDED_MAX};
    struct map_entry *entries = calloc(n + 1, sizeof *entries);
    header.entries_offset = sizeof header;
    header.bitmaps_offset = sizeof header + (n + ADDED_MAX) * sizeof(struct map_entry);
    uint64_t bitmap = header.bitmaps_offset;
    for (uint32_t i = 0; i < n; i++) {
        struct map_entry *entry = &entries[i];
        entry->spc = segments[i].name.spc;
        entry->db = segments[i].name.db;
        entry->rel = segments[i].name.rel;
        entry->fork = entry->source_fork = segments[i].name.fork;
        entry->segno = segments[i].name.segno;
        atomic_store(&entry->nblocks, segments[i].nblocks);
        entry->base_blocks = (segments[i].nblocks + 31) / 32 * 32;
        entry->bitmap_offset = bitmap;
        bitmap += entry->base_blocks / 2;
    }
    header.lookup_offset = (bitmap + 4095) / 4096 * 4096;
    header.areas_offset = (header.lookup_offset + header.added_max * 8 + header.areas_max * 4 + 4095) / 4096 * 4096;
    header.total_bytes = header.areas_offset + (uint64_t)header.areas_max * AREA_CELLS * sizeof(struct map_cell);
    int fd = open(path, O_CREAT | O_TRUNC | O_RDWR, 0600);
    CHECK(fd >= 0 && write(fd, &header, sizeof header) == sizeof header);
    CHECK(write(fd, entries, n * sizeof *entries) == (ssize_t)(n * sizeof *entries) && ftruncate(fd, (off_t)header.total_bytes) == 0);
    close(fd);
    free(entries);
}

/* As the agent does: the key through a pipe, its number in the environment. */
__attribute__((unused)) static const unsigned char test_key[64] = "0123456789abcdefghijklmnopqrstuvwxyz-0123456789ABCDEFGHIJKLMNOPQ";

__attribute__((unused)) static void send_key(void)
{
    int ends[2];
    char number[16];
    CHECK(pipe(ends) == 0 && write(ends[1], test_key, sizeof test_key) == sizeof test_key && close(ends[1]) == 0);
    snprintf(number, sizeof number, "%d", ends[0]);
    setenv("LAKEBASE_SHIM_KEY_FD", number, 1);
}

/* A fresh data directory with base/5 and global in it, the map, the layout; the working directory becomes the data directory. */
__attribute__((unused)) static void start_shim(const struct segment *segments, uint32_t n)
{
    char path[128];
    snprintf(base_directory, sizeof base_directory, "/tmp/pgshim-test-XXXXXX");
    CHECK(mkdtemp(base_directory) != NULL && chdir(base_directory) == 0);
    CHECK(mkdir("data", 0700) == 0 && mkdir("data/base", 0700) == 0 && mkdir("data/base/5", 0700) == 0 && mkdir("data/global", 0700) == 0);
    write_map("map", segments, n);
    snprintf(path, sizeof path, "%s/map", base_directory);
    setenv("LAKEBASE_SHIM_MAP", path, 1);
    snprintf(path, sizeof path, "%s/data", base_directory);
    setenv("LAKEBASE_SHIM_DATADIR", path, 1);
    snprintf(socket_path, sizeof socket_path, "%s/agent.sock", base_directory);
    setenv("LAKEBASE_SHIM_SOCKET", socket_path, 1);
    setenv("LAKEBASE_SHIM_RETRY_SECONDS", "60", 1);
    setenv("LAKEBASE_SHIM_LAYOUT", layout_mode, 1);
    send_key();
    CHECK(chdir(path) == 0);
    knobs = shared_memory(sizeof *knobs);
    shim_start();
    CHECK(map != NULL && getenv("LAKEBASE_SHIM_LAYOUT") == NULL && getenv("LAKEBASE_SHIM_KEY_FD") == NULL);
}

__attribute__((unused)) static void remove_shim(void)
{
    char command[96];
    CHECK(chdir("/") == 0);
    map_close();
    crypt_set_mode(CRYPT_OFF);
    snprintf(command, sizeof command, "rm -rf '%s'", base_directory);
    CHECK(system(command) == 0);
}

#endif
