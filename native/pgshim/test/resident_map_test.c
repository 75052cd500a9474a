/* The map's bits against a plain array, its lookups, its waiting, and files that are no maps. */
#include "harness.h"

static void bits(void)
{
    enum { BLOCKS = 100 };
    struct segment segments[] = {{{1663, 5, 1, 0, 0}, BLOCKS}, {{1663, 5, 2, 0, 0}, BLOCKS}, {{1663, 5, 3, 0, 0}, BLOCKS}};
    start_shim(segments, 3);
    struct map_entry *entry = &map_entries[1];
    int model[BLOCKS] = {0};
    srand(1);
    for (int i = 0; i < 200000; i++) {
        uint32_t block = (uint32_t)rand() % BLOCKS;
        int from = rand() % 4, to = rand() % 4;
        bool swapped = map_swap(entry, block, (enum block_state)from, (enum block_state)to);
        CHECK(swapped == (model[block] == from));
        if (swapped)
            model[block] = to;
        uint32_t first = (uint32_t)rand() % BLOCKS, end = first + (uint32_t)rand() % (BLOCKS - first + 1);
        bool resident = true, written = true;
        for (uint32_t b = first; b < end; b++) {
            resident = resident && model[b] >= BLOCK_RESIDENT;
            written = written && model[b] == BLOCK_WRITTEN;
        }
        CHECK(map_all_resident(entry, first, end) == resident && map_all_written(entry, first, end) == written);
        if (i % 1000 == 0 && end > first) {
            for (uint32_t b = first; b < end; b++)
                CHECK(map_swap(entry, b, (enum block_state)model[b], BLOCK_BUSY));
            enum block_state state = i % 2000 == 0 ? BLOCK_RESIDENT : i % 3000 == 0 ? BLOCK_WRITTEN : BLOCK_ABSENT;
            map_finish(entry, first, end, state);
            for (uint32_t b = first; b < end; b++)
                model[b] = state;
        }
    }
    for (uint32_t b = 0; b < BLOCKS; b++)
        CHECK((int)map_state(entry, b) == model[b] && map_state(&map_entries[0], b) == 0 && map_state(&map_entries[2], b) == 0);
    remove_shim();
}

static void find(void)
{
    enum { N = 1000 };
    struct segment *segments = calloc(N, sizeof *segments);
    for (uint32_t i = 0; i < N; i++)
        segments[i] = (struct segment){{1663, 5, i / 8 * 2, (uint8_t)(i / 2 % 4), (uint16_t)(i % 2)}, i % 3};
    start_shim(segments, N);
    for (int32_t i = 0; i < N; i++)
        CHECK(map_find(&segments[i].name) == i);
    CHECK(map_find(&(struct segment_name){1663, 5, 3, 0, 0}) == -1 && map_find(&(struct segment_name){1663, 6, 0, 0, 0}) == -1);
    CHECK(map_find(&(struct segment_name){1, 0, 0, 0, 0}) == -1);
    free(segments);
    remove_shim();
}

static void *let_go(void *argument)
{
    struct map_entry *entry = argument;
    /* The waiter counts itself before it sleeps: that is the event to react to. */
    while (atomic_load(&map->waiters) == 0)
        sched_yield();
    map_finish(entry, 3, 5, BLOCK_RESIDENT);
    return NULL;
}

static void waiting(void)
{
    struct segment segments[] = {{{1663, 5, 1, 0, 0}, 40}};
    start_shim(segments, 1);
    struct map_entry *entry = map_entries;
    CHECK(map_swap(entry, 3, BLOCK_ABSENT, BLOCK_BUSY) && map_swap(entry, 4, BLOCK_ABSENT, BLOCK_BUSY));
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, let_go, entry) == 0);
    int64_t start = now_ms();
    CHECK(map_wait(entry, 4) == 0 && map_state(entry, 4) == BLOCK_RESIDENT && now_ms() - start < 900);
    pthread_join(thread, NULL);
    CHECK(atomic_load(&map->waiters) == 0 && atomic_load(&map->waits) == 1);
    CHECK(map_run_before(entry, 5, 10) == 2 && map_run_before(entry, 5, 1) == 1 && map_run_before(entry, 0, 10) == 0);
    remove_shim();
}

static void no_maps(void)
{
    struct segment segments[] = {{{1663, 5, 1, 0, 0}, 40}};
    start_shim(segments, 1);
    char good[512];
    int fd = open("../map", O_RDONLY);
    ssize_t length = read(fd, good, sizeof good);
    close(fd);
    map_close();
    static const struct { size_t at; unsigned char value; } changes[] = {{0, 0}, {4, 9}, {8, 2}, {11, 255}, {16, 1}, {24, 1}, {32, 1}, {256 + 16, 200}, {256 + 24, 1}, {256 + 31, 1}};
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        char bad[512];
        memcpy(bad, good, sizeof bad);
        bad[changes[i].at] = (char)changes[i].value;
        fd = open("../bad", O_CREAT | O_TRUNC | O_WRONLY, 0600);
        CHECK(write(fd, bad, (size_t)length) == length);
        close(fd);
        CHECK(map_open("../bad") != NULL && map == NULL);
    }
    CHECK(truncate("../bad", 100) == 0 && map_open("../bad") != NULL && map_open("../missing") != NULL && map_open("../map") == NULL);
    remove_shim();
}

int main(void)
{
    bits();
    find();
    waiting();
    no_maps();
    return 0;
}
