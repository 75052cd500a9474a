/* The interposed calls, one process against the fake agent: what is fetched, what is kept, what an error does. */
#include "harness.h"

#include "agent_client.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#define N 300
static const struct segment segments[] = {
    {{1663, 5, 1, 0, 0}, N}, {{1663, 5, 2, 0, 0}, N}, {{1663, 5, 3, 0, 0}, N}, {{1663, 5, 4, 0, 0}, N}, {{1663, 5, 5, 0, 0}, N},
    {{1663, 5, 6, 0, 0}, N}, {{1663, 5, 7, 0, 0}, N}, {{1663, 5, 8, 0, 0}, N}, {{1663, 5, 9, 0, 0}, N},
};
#define SEGMENTS (sizeof segments / sizeof *segments)

static char page[BLCKSZ];
static char many[N * BLCKSZ];

static int open_segment(uint32_t entry, int flags)
{
    char path[32];
    snprintf(path, sizeof path, "base/5/%u", entry + 1);
    int fd = open(path, flags, 0600);
    CHECK(fd >= 0);
    return fd;
}

static uint64_t read_block(int fd, uint32_t block)
{
    CHECK(pread(fd, page, BLCKSZ, (off_t)block * BLCKSZ) == BLCKSZ);
    return page_word(page);
}

static uint32_t requests(void)
{
    return atomic_load(&knobs->requests);
}

static void begin(void)
{
    start_shim(segments, SEGMENTS);
    start_agent();
}

static void end(void)
{
    stop_agent();
    remove_shim();
}

static void reads(void)
{
    begin();
    int fd = open_segment(0, O_RDONLY);
    errno = 4711;
    CHECK(read_block(fd, 7) == pattern(0, 7, 0) && errno == 4711);
    CHECK(requests() == 1 && map_state(map_entries, 7) == BLOCK_RESIDENT && map_state(map_entries, 8) == BLOCK_ABSENT);
    CHECK(read_block(fd, 7) == pattern(0, 7, 0) && requests() == 1);
    /* One request for a run, around what is there already. */
    struct iovec vector[2] = {{many, 3 * BLCKSZ}, {many + 3 * BLCKSZ, 5 * BLCKSZ}};
    CHECK(preadv(fd, vector, 2, 20 * BLCKSZ) == 8 * BLCKSZ && requests() == 2 && atomic_load(&knobs->last_count) == 8);
    for (uint32_t i = 0; i < 8; i++)
        CHECK(page_word(many + i * BLCKSZ) == pattern(0, 20 + i, 0));
    CHECK(pread(fd, many, 4 * BLCKSZ, 5 * BLCKSZ) == 4 * BLCKSZ && requests() == 4); /* 5..6 and 8 */
    CHECK(page_word(many) == pattern(0, 5, 0) && page_word(many + 3 * BLCKSZ) == pattern(0, 8, 0));
    /* Across the end, past the end, unaligned, and at the file position. */
    CHECK(pread(fd, many, 4 * BLCKSZ, (N - 1) * BLCKSZ) == BLCKSZ && pread(fd, many, 10, (off_t)N * BLCKSZ) == 0);
    CHECK(pread(fd, many, 16, 100 * BLCKSZ - 8) == 16 && *(uint64_t *)(void *)many == pattern(0, 99, 0));
    CHECK(lseek(fd, 50 * BLCKSZ + 8, SEEK_SET) > 0 && read(fd, many, 8) == 8 && *(uint64_t *)(void *)many == pattern(0, 50, 0));
    CHECK(lseek(fd, 0, SEEK_CUR) == 50 * BLCKSZ + 16);
    uint32_t before = requests();
    CHECK(pread(fd, many, 0, 200 * BLCKSZ) == 0 && pread(fd, many, 8, -1) == -1 && errno == EINVAL && requests() == before);
    close(fd);
    end();
}

static void sequential_misses(void)
{
    begin();
    int fd = open_segment(0, O_RDWR);
    for (uint32_t block = 0; block < N; block++)
        CHECK(read_block(fd, block) == pattern(0, block, 0));
    CHECK(requests() <= 5 + N / 17); /* 1, 1+1, 1+3, 1+7, 1+15, then one block and 16 ahead */
    CHECK(atomic_load(&map->blocks_fetched) == N && atomic_load(&map->fault_requests) == requests());
    close(fd);
    fd = open_segment(1, O_RDWR);
    CHECK(pread(fd, many, sizeof many, 0) == sizeof many && page_word(many + (N - 1) * BLCKSZ) == pattern(1, N - 1, 0));
    end();
}

static void writes(void)
{
    begin();
    int fd = open_segment(1, O_RDWR);
    struct map_entry *entry = &map_entries[1];
    fill_page(page, pattern(1, 5, 9));
    CHECK(pwrite(fd, page, BLCKSZ, 5 * BLCKSZ) == BLCKSZ && requests() == 0 && map_state(entry, 5) == BLOCK_WRITTEN);
    CHECK(read_block(fd, 5) == pattern(1, 5, 9) && requests() == 0);
    /* A fault over a written block leaves it alone. */
    CHECK(pread(fd, many, 8 * BLCKSZ, 2 * BLCKSZ) == 8 * BLCKSZ && page_word(many + 3 * BLCKSZ) == pattern(1, 5, 9));
    CHECK(page_word(many) == pattern(1, 2, 0) && page_word(many + 7 * BLCKSZ) == pattern(1, 9, 0));
    /* Part of an absent block: the rest comes from storage. */
    CHECK(pwrite(fd, "abcdefgh", 8, 50 * BLCKSZ + 80) == 8 && map_state(entry, 50) == BLOCK_WRITTEN);
    CHECK(pread(fd, page, BLCKSZ, 50 * BLCKSZ) == BLCKSZ && memcmp(page + 80, "abcdefgh", 8) == 0);
    uint64_t word = pattern(1, 50, 0);
    memcpy(page + 80, &word, 8);
    CHECK(page_word(page) == word);
    /* Several blocks, the ends partial, resident ones among them. */
    memset(many, 0, 4 * BLCKSZ);
    CHECK(pwrite(fd, many, 3 * BLCKSZ, 60 * BLCKSZ + 4096) == 3 * BLCKSZ);
    CHECK(pread(fd, page, 4096, 60 * BLCKSZ) == 4096 && *(uint64_t *)(void *)page == pattern(1, 60, 0));
    CHECK(pread(fd, page, 4096, 63 * BLCKSZ + 4096) == 4096 && *(uint64_t *)(void *)page == pattern(1, 63, 0));
    CHECK(read_block(fd, 61) == 0 && map_all_written(entry, 60, 64));
    /* More blocks than one claim holds. */
    memset(many, 7, sizeof many);
    CHECK(pwrite(fd, many, sizeof many, 0) == sizeof many && map_all_written(entry, 0, N) && read_block(fd, 299) == 0x0707070707070707);
    /* Extension beyond what storage has is local. */
    uint32_t before = requests();
    fill_page(page, 42);
    CHECK(pwrite(fd, page, BLCKSZ, (N + 5) * BLCKSZ) == BLCKSZ && read_block(fd, N + 2) == 0 && read_block(fd, N + 5) == 42 && requests() == before);
    CHECK(posix_fallocate(fd, (N + 6) * BLCKSZ, 10 * BLCKSZ) == 0 && read_block(fd, N + 10) == 0 && requests() == before);
    /* At the file position. */
    int other = open_segment(2, O_RDWR);
    fill_page(page, 43);
    CHECK(lseek(other, 8 * BLCKSZ, SEEK_SET) > 0 && write(other, page, BLCKSZ) == BLCKSZ && map_state(&map_entries[2], 8) == BLOCK_WRITTEN);
    CHECK(lseek(other, 0, SEEK_CUR) == 9 * BLCKSZ && read_block(other, 8) == 43 && read_block(other, 9) == pattern(2, 9, 0));
    end();
}

/* A write cut short by the file size limit: whole blocks count, the torn one goes back to storage's version. */
static void failed_writes(void)
{
    begin();
    signal(SIGXFSZ, SIG_IGN);
    int fd = open_segment(0, O_RDWR);
    struct rlimit old, limit;
    CHECK(getrlimit(RLIMIT_FSIZE, &old) == 0);
    limit = old;
    limit.rlim_cur = 10 * BLCKSZ + 4096;
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    memset(many, 1, 4 * BLCKSZ);
    CHECK(pwrite(fd, many, 4 * BLCKSZ, 8 * BLCKSZ) == 2 * BLCKSZ);
    CHECK(pwrite(fd, many, 2 * BLCKSZ, 10 * BLCKSZ) == -1 && errno == ENOSPC);
    CHECK(pwrite(fd, many, BLCKSZ, 20 * BLCKSZ) == -1 && errno == EFBIG);
    CHECK(lseek(fd, 10 * BLCKSZ, SEEK_SET) > 0 && write(fd, many, BLCKSZ) == -1 && lseek(fd, 0, SEEK_CUR) == 10 * BLCKSZ);
    CHECK(setrlimit(RLIMIT_FSIZE, &old) == 0);
    CHECK(map_all_written(map_entries, 8, 10) && map_state(map_entries, 10) == BLOCK_ABSENT && map_state(map_entries, 20) == BLOCK_ABSENT);
    CHECK(read_block(fd, 9) == 0x0101010101010101 && read_block(fd, 10) == pattern(0, 10, 0) && read_block(fd, 20) == pattern(0, 20, 0));
    end();
}

static void truncations(void)
{
    begin();
    struct map_entry *entry = &map_entries[0];
    int fd = open_segment(0, O_RDWR);
    CHECK(read_block(fd, 250) == pattern(0, 250, 0));
    CHECK(ftruncate(fd, 100 * BLCKSZ) == 0 && map_nblocks(entry) == 100 && map_all_written(entry, 100, N));
    uint32_t before = requests();
    CHECK(pread(fd, page, BLCKSZ, 100 * BLCKSZ) == 0);
    CHECK(ftruncate(fd, 200 * BLCKSZ) == 0 && map_nblocks(entry) == 100 && read_block(fd, 150) == 0 && read_block(fd, 199) == 0 && requests() == before);
    CHECK(read_block(fd, 99) == pattern(0, 99, 0) && requests() == before + 1);
    CHECK(ftruncate(fd, 50 * BLCKSZ + 100) == 0 && map_nblocks(entry) == 51 && map_state(entry, 50) == BLOCK_WRITTEN);
    CHECK(pread(fd, page, BLCKSZ, 50 * BLCKSZ) == 100 && *(uint64_t *)(void *)page == pattern(0, 50, 0));
    /* A truncation that fails loses nothing. */
    CHECK(ftruncate(fd, -1) == -1 && errno == EINVAL && map_nblocks(entry) == 51 && map_state(entry, 3) == BLOCK_ABSENT);
    CHECK(truncate("base/5/2", 10 * BLCKSZ) == 0 && map_nblocks(&map_entries[1]) == 10);
    int truncated = open_segment(2, O_RDWR | O_TRUNC);
    before = requests();
    CHECK(map_nblocks(&map_entries[2]) == 0 && pread(truncated, page, BLCKSZ, 0) == 0);
    CHECK(ftruncate(truncated, BLCKSZ) == 0 && read_block(truncated, 0) == 0 && requests() == before);
    CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, BLCKSZ) == -1 && errno == EOPNOTSUPP);
    end();
}

static void names(void)
{
    begin();
    int old = open_segment(0, O_RDWR);
    CHECK(unlink("base/5/1") == 0 && map_is_dropped(&map_entries[0]));
    int fd = open_segment(0, O_RDWR | O_CREAT | O_EXCL);
    CHECK(ftruncate(fd, 5 * BLCKSZ) == 0 && read_block(fd, 2) == 0 && read_block(old, 2) == 0 && requests() == 0);
    /* The file storage knows went away without us: whoever creates it anew gets a local one. */
    CHECK(rename("base/5/2", "../away") == -1 && errno == EXDEV && link("base/5/2", "../away") == -1 && errno == EXDEV);
    CHECK(rename("base/5/2", "base/5/away") == 0);
    fd = open("base/5/away", O_RDONLY);
    CHECK(read_block(fd, 299) == pattern(1, 299, 0) && read_block(fd, 0) == pattern(1, 0, 0) && map_is_dropped(&map_entries[1]));
    CHECK(rename("base/5/away", "base/5/3") == 0 && map_is_dropped(&map_entries[2]));
    fd = open_segment(2, O_RDWR);
    uint32_t before = requests();
    CHECK(read_block(fd, 10) == pattern(1, 10, 0) && requests() == before);
    CHECK(unlink("base/5/404") == -1 && errno == ENOENT && rename("base/5/404", "base/5/4") == -1 && !map_is_dropped(&map_entries[3]));
    end();
}

static void descriptors(void)
{
    begin();
    int fd = open_segment(0, O_RDONLY);
    int copy = dup(fd);
    CHECK(close(fd) == 0 && read_block(copy, 3) == pattern(0, 3, 0));
    /* The number of a closed segment may come back as anything. */
    CHECK(close(copy) == 0);
    fd = open("../plain", O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && ftruncate(fd, 10 * BLCKSZ) == 0 && read_block(fd, 5) == 0);
    int segment = open_segment(1, O_RDWR);
    CHECK(dup2(segment, fd) == fd && read_block(fd, 5) == pattern(1, 5, 0));
    int directory = open("base/5", O_RDONLY | O_DIRECTORY);
    int below = openat(directory, "3", O_RDONLY);
    CHECK(below >= 0 && read_block(below, 5) == pattern(2, 5, 0));
    /* The connection to the agent stays out of the way of Postgres's own numbers. */
    int next = dup(0);
    CHECK(next >= 0 && next < 20);
    end();
}

static void copies(void)
{
    begin();
    int from = open_segment(0, O_RDONLY);
    int to = open("../copy", O_RDWR | O_CREAT, 0600);
    ssize_t n, total = 0;
    while ((n = copy_file_range(from, NULL, to, NULL, 1 << 20, 0)) > 0)
        total += n;
    CHECK(n == 0 && total == N * BLCKSZ);
    for (uint32_t block = 0; block < N; block++)
        CHECK(read_block(to, block) == pattern(0, block, 0));
    /* From one tracked file into another. */
    int target = open_segment(1, O_RDWR);
    off_t in = 10 * BLCKSZ, out = 20 * BLCKSZ + 4096;
    CHECK(copy_file_range(from, &in, target, &out, 2 * BLCKSZ, 0) == 2 * BLCKSZ && in == 12 * BLCKSZ);
    CHECK(pread(target, page, 4096, 20 * BLCKSZ) == 4096 && *(uint64_t *)(void *)page == pattern(1, 20, 0));
    CHECK(pread(target, page, 8, 21 * BLCKSZ) == 8 && *(uint64_t *)(void *)page == pattern(0, 10, 0));
    /* As CREATE DATABASE … STRATEGY FILE_COPY does it. */
    from = open_segment(2, O_RDONLY);
    for (uint32_t block = 0; (n = read(from, many, 8 * BLCKSZ)) > 0; block += (uint32_t)n / BLCKSZ)
        for (uint32_t i = 0; i < (uint32_t)n / BLCKSZ; i++)
            CHECK(page_word(many + i * BLCKSZ) == pattern(2, block + i, 0));
    off_t at = 100 * BLCKSZ;
    from = open_segment(3, O_RDONLY);
    CHECK(ftruncate(to, 0) == 0 && lseek(to, 0, SEEK_SET) == 0 && sendfile(to, from, &at, BLCKSZ) == BLCKSZ && read_block(to, 0) == pattern(3, 100, 0));
    end();
}

static void agent_errors(void)
{
    begin();
    int fd = open_segment(0, O_RDWR);
    atomic_store(&knobs->error, EIO);
    CHECK(pread(fd, page, BLCKSZ, 0) == -1 && errno == EIO && pwrite(fd, "x", 1, 5) == -1 && errno == EIO);
    atomic_store(&knobs->error, ENOSPC);
    CHECK(pread(fd, page, BLCKSZ, 0) == -1 && errno == ENOSPC && atomic_load(&map->errors) == 3 && map_state(map_entries, 0) == BLOCK_ABSENT);
    atomic_store(&knobs->error, 0);
    CHECK(read_block(fd, 0) == pattern(0, 0, 0));
    atomic_store(&knobs->hang_up, 3);
    CHECK(read_block(fd, 10) == pattern(0, 10, 0));
    atomic_store(&knobs->slow_parts, 1);
    CHECK(pread(fd, many, 20 * BLCKSZ, 100 * BLCKSZ) == 20 * BLCKSZ && page_word(many + 19 * BLCKSZ) == pattern(0, 119, 0));
    atomic_store(&knobs->short_by, 2);
    CHECK(pread(fd, many, 5 * BLCKSZ, 200 * BLCKSZ) == 5 * BLCKSZ && page_word(many + 2 * BLCKSZ) == pattern(0, 202, 0) && page_word(many + 3 * BLCKSZ) == 0);
    atomic_store(&knobs->short_by, 0);
    stop_agent();
    CHECK(agent_client_start(socket_path, 1));
    CHECK(read_block(fd, 10) == pattern(0, 10, 0)); /* resident */
    int64_t start = now_ms();
    CHECK(pread(fd, page, BLCKSZ, 50 * BLCKSZ) == -1 && errno == EIO && now_ms() - start >= 1000 && now_ms() - start < 30000);
    start_agent();
    CHECK(agent_client_start(socket_path, 60) && read_block(fd, 50) == pattern(0, 50, 0));
    end();
}

static void *read_first_block(void *fd)
{
    CHECK(read_block(*(int *)fd, 0) == pattern(0, 0, 0));
    return NULL;
}

static void agent_returns(void)
{
    begin();
    stop_agent();
    int fd = open_segment(0, O_RDWR);
    pthread_t reader;
    CHECK(pthread_create(&reader, NULL, read_first_block, &fd) == 0);
    CHECK(usleep(200000) == 0); /* the time the agent is away, not a wait for anything */
    start_agent();
    pthread_join(reader, NULL);
    end();
}

static volatile sig_atomic_t alarms;

static void on_alarm(int signal)
{
    (void)signal;
    alarms++;
}

/* Signals do not end a fault early, are not lost, and the mask is the caller's again afterwards. */
static void signals(void)
{
    begin();
    sigset_t mask;
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    pid_t child = fork();
    if (child == 0) {
        for (int i = 0; i < 2000; i++)
            kill(getppid(), SIGUSR1);
        _exit(0);
    }
    for (uint32_t entry = 0; entry < SEGMENTS; entry++) {
        int fd = open_segment(entry, O_RDWR);
        for (uint32_t block = 0; block < N; block += 3)
            CHECK(read_block(fd, block) == pattern(entry, block, 0));
        close(fd);
    }
    CHECK(waitpid(child, NULL, 0) == child && alarms > 0);
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &mask) == 0 && !sigismember(&mask, SIGUSR1) && !sigismember(&mask, SIGTERM));
    signal(SIGUSR1, SIG_DFL);
    end();
}

/* A child must not share the parent's connection: answers would get mixed up. */
static void forks(void)
{
    begin();
    int fd = open_segment(0, O_RDWR);
    CHECK(read_block(fd, 0) == pattern(0, 0, 0));
    pid_t children[4];
    for (int c = 0; c < 4; c++) {
        children[c] = fork();
        if (children[c] == 0) {
            for (uint32_t block = 0; block < N; block++)
                if (pread(fd, page, BLCKSZ, (off_t)block * BLCKSZ) != BLCKSZ || page_word(page) != pattern(0, block, 0))
                    _exit(1);
            _exit(0);
        }
    }
    for (uint32_t block = 0; block < N; block++)
        CHECK(read_block(fd, block) == pattern(0, block, 0));
    for (int c = 0; c < 4; c++) {
        int status;
        CHECK(waitpid(children[c], &status, 0) == children[c] && status == 0);
    }
    end();
}

/* Rule 5: with resident blocks the kernel sees pread64 and preadv, and nothing else. A filter kills the child that tries more. */
static void no_extra_system_calls(void)
{
#ifndef __SANITIZE_THREAD__
    begin();
    int fd = open_segment(0, O_RDWR);
    CHECK(pread(fd, many, 100 * BLCKSZ, 0) == 100 * BLCKSZ);
    pid_t child = fork();
    if (child == 0) {
        struct sock_filter code[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pread64, 3, 0),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_preadv, 2, 0),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 1, 0),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        struct sock_fprog program = {sizeof code / sizeof *code, code};
        struct iovec vector = {many, 50 * BLCKSZ};
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
            _exit(2);
        for (int i = 0; i < 100; i++)
            if (pread(fd, page, BLCKSZ, (off_t)i * BLCKSZ) != BLCKSZ || preadv(fd, &vector, 1, BLCKSZ) != 50 * BLCKSZ)
                syscall(SYS_exit_group, 3);
        syscall(SYS_exit_group, 0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    if (status != 2 << 8) /* no seccomp on this kernel */
        CHECK(status == 0);
    end();
#endif
}

/* The postmaster dies with its agent: with the parent gone, SIGQUIT arrives. */
static void death_of_the_agent(void)
{
    begin();
    int ends[2];
    CHECK(pipe(ends) == 0);
    pid_t agent = fork();
    if (agent == 0) {
        if (fork() == 0) {
            setenv("LAKEBASE_SHIM_LAYOUT", "1", 1);
            send_key();
            shim_start();
            CHECK(write(ends[1], "r", 1) == 1);
            for (;;)
                pause();
        }
        char ready;
        CHECK(read(ends[0], &ready, 1) == 1);
        _exit(0);
    }
    CHECK(waitpid(agent, NULL, 0) == agent);
    close(ends[1]);
    char rest;
    CHECK(read(ends[0], &rest, 1) == 0); /* end of file: the orphan is gone */
    close(ends[0]);
    end();
}

int main(void)
{
    reads();
    sequential_misses();
    writes();
    failed_writes();
    truncations();
    names();
    descriptors();
    copies();
    agent_errors();
    agent_returns();
    signals();
    forks();
    no_extra_system_calls();
    death_of_the_agent();
    return 0;
}
