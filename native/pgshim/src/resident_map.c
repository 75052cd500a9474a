/* The resident map: lookups, block states, waiting. See resident_map.h for the invariants. */
#define _GNU_SOURCE
#include "resident_map.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "added.h"
#include "libc.h"
#include "util.h"

#define HIGH_BITS 0xAAAAAAAAu
/* A process holds a block for one pwrite. One that does not let go in this time was killed, and Postgres is restarting anyway. */
#define OWNER_GONE_MS 60000

struct map_header *map;
struct map_entry *map_entries;
struct map_cell *map_areas;

static const char *check(const struct map_header *header, uint64_t size)
{
    if (header->magic != MAP_MAGIC || header->version != MAP_VERSION)
        return "wrong magic or version";
    if (header->total_bytes != size || header->entries_offset != sizeof *header)
        return "header does not fit the file";
    uint64_t entries_end = header->entries_offset + ((uint64_t)header->entry_count + header->added_max) * sizeof(struct map_entry);
    if (entries_end > size || header->bitmaps_offset != entries_end || (uint64_t)header->entry_count + header->added_max > INT32_MAX - 1)
        return "entries lie outside the file";
    uint64_t tables = (uint64_t)header->added_max * 8 + (uint64_t)header->areas_max * 4;
    if (header->lookup_offset < header->bitmaps_offset || header->lookup_offset % 16 != 0 || header->areas_offset < header->lookup_offset ||
        header->areas_offset - header->lookup_offset < tables || header->areas_offset % 16 != 0 || (header->added_max & (header->added_max - 1)) != 0)
        return "tables lie outside the file";
    if (header->areas_offset + (uint64_t)header->areas_max * AREA_CELLS * sizeof(struct map_cell) != size)
        return "areas lie outside the file";
    const struct map_entry *entry = (const void *)((const char *)header + header->entries_offset);
    uint64_t before = header->bitmaps_offset;
    for (uint32_t i = 0; i < header->entry_count; i++, entry++) {
        uint64_t bitmap = (uint64_t)entry->base_blocks / CELL_BLOCKS * sizeof(struct map_cell);
        if (entry->bitmap_offset < before || entry->bitmap_offset > header->lookup_offset || bitmap > header->lookup_offset - entry->bitmap_offset ||
            entry->bitmap_offset % 16 != 0 || entry->base_blocks % CELL_BLOCKS != 0)
            return "a bitmap lies outside the file or out of order";
        if (atomic_load_explicit(&entry->area, memory_order_relaxed) == 0 && map_nblocks((struct map_entry *)(uintptr_t)entry) > entry->base_blocks)
            return "a bitmap is too short";
        before = entry->bitmap_offset;
    }
    return NULL;
}

const char *map_open(const char *path)
{
    libc_resolve();
    int fd = real.open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return strerror(errno);
    struct stat st;
    if (fstat(fd, &st) != 0 || st.st_size < (off_t)sizeof(struct map_header)) {
        real.close(fd);
        return "too short";
    }
    void *at = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    int map_error = errno;
    real.close(fd);
    if (at == MAP_FAILED)
        return strerror(map_error);
    const char *wrong = check(at, (uint64_t)st.st_size);
    if (wrong != NULL) {
        munmap(at, (size_t)st.st_size);
        return wrong;
    }
    map = at;
    map_entries = (void *)((char *)at + map->entries_offset);
    map_areas = (void *)((char *)at + map->areas_offset);
    return NULL;
}

void map_close(void)
{
    if (map != NULL)
        munmap(map, map->total_bytes);
    map = NULL;
    map_entries = NULL;
    map_areas = NULL;
}

#define ORDER(a, b)        \
    if ((a) != (b))        \
        return (a) < (b) ? -1 : 1

static int compare(const struct map_entry *entry, const struct segment_name *name)
{
    ORDER(entry->spc, name->spc);
    ORDER(entry->db, name->db);
    ORDER(entry->rel, name->rel);
    ORDER(entry->fork, name->fork);
    ORDER(entry->segno, name->segno);
    return 0;
}

int32_t map_lower_bound(const struct segment_name *name)
{
    int32_t low = 0;
    int32_t high = (int32_t)map->entry_count;
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (compare(&map_entries[middle], name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

int32_t map_find(const struct segment_name *name)
{
    int32_t at = map_lower_bound(name);
    return at < (int32_t)map->entry_count && compare(&map_entries[at], name) == 0 ? at : added_find(name);
}

/* The bits of blocks [first, end) that lie in first's word. */
static uint32_t word_mask(uint32_t first, uint32_t end)
{
    uint32_t low = first % 16;
    uint32_t count = end - first < 16 - low ? end - first : 16 - low;
    uint32_t ones = count == 16 ? UINT32_MAX : (1u << (count * 2)) - 1;
    return ones << (low * 2);
}

static bool all_set(struct map_entry *entry, uint32_t first, uint32_t end, uint32_t bits)
{
    for (; first < end; first = (first / 16 + 1) * 16) {
        uint32_t mask = word_mask(first, end) & bits;
        if ((atomic_load_explicit(map_word(entry, first), memory_order_acquire) & mask) != mask)
            return false;
    }
    return true;
}

bool map_all_resident(struct map_entry *entry, uint32_t first, uint32_t end)
{
    return all_set(entry, first, end, HIGH_BITS);
}

bool map_all_written(struct map_entry *entry, uint32_t first, uint32_t end)
{
    return all_set(entry, first, end, UINT32_MAX);
}

/* The bits of blocks [first, end) that lie in first's cell. */
static uint32_t cell_mask(uint32_t first, uint32_t end, uint32_t *count)
{
    uint32_t low = first % CELL_BLOCKS;
    *count = end - first < CELL_BLOCKS - low ? end - first : CELL_BLOCKS - low;
    return (*count == CELL_BLOCKS ? UINT32_MAX : (1u << *count) - 1) << low;
}

void map_mark_young(struct map_entry *entry, uint32_t first, uint32_t end)
{
    for (uint32_t count; first < end; first += count) {
        uint32_t mask = cell_mask(first, end, &count);
        _Atomic uint32_t *young = &map_cell(entry, first)->young;
        if ((atomic_load_explicit(young, memory_order_relaxed) & mask) != mask)
            atomic_fetch_or(young, mask);
    }
}

static void clear_young(struct map_cell *cells, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        if (atomic_load_explicit(&cells[i].young, memory_order_relaxed) != 0)
            atomic_store(&cells[i].young, 0);
}

void map_clear_young(void)
{
    clear_young((void *)((char *)map + map->bitmaps_offset), (map->lookup_offset - map->bitmaps_offset) / sizeof(struct map_cell));
    for (uint32_t i = 0; i < map_length(); i++) {
        struct map_entry *entry = &map_entries[i];
        uint32_t nblocks = map_nblocks(entry);
        if (nblocks > entry->base_blocks)
            clear_young(map_cell(entry, entry->base_blocks), (nblocks - entry->base_blocks + CELL_BLOCKS - 1) / CELL_BLOCKS);
    }
}

void map_make_written(struct map_entry *entry, uint32_t first, uint32_t end)
{
    for (; first < end; first = (first / 16 + 1) * 16)
        atomic_fetch_or(map_word(entry, first), word_mask(first, end));
}

void map_touch(struct map_entry *entry, uint32_t first, uint32_t end)
{
    while (first < end) {
        uint32_t count;
        uint32_t mask = cell_mask(first, end, &count);
        _Atomic uint32_t *accessed = &map_cell(entry, first)->accessed;
        /* Looked at first: a word that many processes share is seldom written. */
        if ((atomic_load_explicit(accessed, memory_order_relaxed) & mask) != mask)
            atomic_fetch_or_explicit(accessed, mask, memory_order_relaxed);
        first += count;
    }
}

bool map_try_evicting(struct map_entry *entry)
{
    uint32_t flags = atomic_load(&entry->flags);
    if ((flags & (ENTRY_DROPPED | ENTRY_LAYING | ENTRY_EVICTING | ENTRY_HELD)) != 0)
        return false;
    return atomic_compare_exchange_strong(&entry->flags, &flags, flags | ENTRY_EVICTING);
}

void map_end_evicting(struct map_entry *entry)
{
    atomic_fetch_and(&entry->flags, ~ENTRY_EVICTING);
    map_wake(&entry->flags);
}

int map_hold(struct map_entry *entry)
{
    int64_t deadline = now_ms() + OWNER_GONE_MS;
    uint32_t flags = atomic_load(&entry->flags);
    for (;;) {
        if ((flags & (ENTRY_EVICTING | ENTRY_HELD)) == 0) {
            if (atomic_compare_exchange_weak(&entry->flags, &flags, flags | ENTRY_HELD))
                return 0;
            continue;
        }
        if (now_ms() > deadline)
            return EIO;
        map_sleep(&entry->flags, flags);
        flags = atomic_load(&entry->flags);
    }
}

void map_release(struct map_entry *entry)
{
    atomic_fetch_and(&entry->flags, ~ENTRY_HELD);
    map_wake(&entry->flags);
}

uint32_t map_count_clean(struct map_entry *entry)
{
    uint32_t nblocks = map_nblocks(entry);
    uint32_t count = 0;
    for (uint32_t block = 0; block < nblocks; block += 16) {
        uint32_t word = atomic_load_explicit(map_word(entry, block), memory_order_relaxed);
        count += (uint32_t)__builtin_popcount((word & HIGH_BITS) & ~(word << 1));
    }
    return count;
}

bool map_swap(struct map_entry *entry, uint32_t block, enum block_state from, enum block_state to)
{
    _Atomic uint32_t *word = map_word(entry, block);
    unsigned shift = block % 16 * 2;
    uint32_t old = atomic_load_explicit(word, memory_order_acquire);
    do {
        if (((old >> shift) & 3) != (uint32_t)from)
            return false;
    } while (!atomic_compare_exchange_weak(word, &old, (old & ~(3u << shift)) | (uint32_t)to << shift));
    return true;
}

void map_sleep(_Atomic uint32_t *word, uint32_t value)
{
    struct timespec timeout = {.tv_sec = 1};
    atomic_fetch_add(&map->waiters, 1);
    if (atomic_load(word) == value)
        syscall(SYS_futex, word, FUTEX_WAIT, value, &timeout, NULL, 0);
    atomic_fetch_sub(&map->waiters, 1);
}

void map_wake(_Atomic uint32_t *word)
{
    /* Sequentially consistent with the increment in map_sleep: either we see the waiter or it sees the new state. */
    if (atomic_load(&map->waiters) != 0)
        syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

void map_finish(struct map_entry *entry, uint32_t first, uint32_t end, enum block_state to)
{
    while (first < end) {
        _Atomic uint32_t *word = map_word(entry, first);
        uint32_t mask = word_mask(first, end);
        /* Ours are all 01, so one exclusive-or turns them into `to` and leaves the neighbours alone. */
        atomic_fetch_xor(word, mask & (((uint32_t)to ^ BLOCK_BUSY) * 0x55555555u));
        map_wake(word);
        first = (first / 16 + 1) * 16;
    }
}

int map_wait(struct map_entry *entry, uint32_t block)
{
    if (map_state(entry, block) != BLOCK_BUSY)
        return 0;
    _Atomic uint32_t *word = map_word(entry, block);
    int saved = errno;
    int64_t deadline = now_ms() + OWNER_GONE_MS;
    bool gone = false;
    map_count(&map->waits, 1);
    for (;;) {
        uint32_t value = atomic_load(word);
        if (((value >> (block % 16 * 2)) & 3) != BLOCK_BUSY)
            break;
        if ((gone = now_ms() > deadline))
            break;
        map_sleep(word, value);
    }
    errno = saved;
    if (gone)
        shim_log("block %u of relation %u is held by a process that does not come back", block, entry->rel);
    return gone ? EIO : 0;
}

uint32_t map_run_before(struct map_entry *entry, uint32_t block, uint32_t limit)
{
    uint32_t run = 0;
    while (run < limit && run < block && map_state(entry, block - run - 1) != BLOCK_ABSENT)
        run++;
    return run;
}
