/* Dropping clean blocks: a clock over the cells of the map, one hand for all processes.
 *
 * Invariants (docs/protocols/shim-agent.md, Dropping)
 * - Only RESIDENT blocks are dropped, by way of BUSY, while this process holds ENTRY_EVICTING.
 * - The generation of the entry changes after the blocks became BUSY and before the first hole is punched.
 * - Nothing here waits: a segment that somebody else has is passed over, so owners of busy blocks may call it. */
#define _GNU_SOURCE
#include <errno.h>

#include "cache.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "added.h"
#include "libc.h"
#include "segment_path.h"

/* What one step of the hand covers: 256 blocks, 2 MiB. */
#define STEP_CELLS 8u
/* A backend that fetched past the bound drops so many more than it has to, so that not every fetch pays. */
#define SLACK_BLOCKS 64u
#define SETTLE_BLOCKS_MAX 1024u
/* Room made at once when the disk is full. */
#define ROOM_BLOCKS 256u
#define CLEAN_BITS 0xAAAAAAAAu

/* The file system cannot punch holes: there is no bound then, and no room to make. */
static _Atomic bool impossible;

static bool has_clean(struct map_cell *cell)
{
    for (int i = 0; i < 2; i++) {
        uint32_t word = atomic_load_explicit(&cell->states[i], memory_order_relaxed);
        if ((word & CLEAN_BITS & ~(word << 1)) != 0)
            return true;
    }
    return false;
}

/* Takes the clean blocks of a cell that were not used since the hand came by last; the others lose their mark. */
static uint32_t claim_cell(struct map_entry *entry, uint32_t first)
{
    struct map_cell *cell = map_cell(entry, first);
    uint32_t accessed = atomic_load_explicit(&cell->accessed, memory_order_relaxed);
    uint32_t claimed = 0, spared = 0;
    for (uint32_t i = 0; i < CELL_BLOCKS; i++) {
        if (map_state_in(cell, i) != BLOCK_RESIDENT)
            continue;
        if ((accessed >> i & 1) != 0)
            spared |= 1u << i;
        else if (map_swap(entry, first + i, BLOCK_RESIDENT, BLOCK_BUSY))
            claimed |= 1u << i;
    }
    if (spared != 0)
        atomic_fetch_and_explicit(&cell->accessed, ~spared, memory_order_relaxed);
    return claimed;
}

static int open_segment(struct map_entry *entry)
{
    char path[PATH_MAX + 192];
    char name[160];
    if (segment_format(entry, name, sizeof name) == 0)
        return -1;
    snprintf(path, sizeof path, "%s/%s", segment_path_datadir(), name);
    return real.open(path, O_RDWR | O_CLOEXEC);
}

/* Blocks [first, end) are busy by us: a hole, and absent; or resident again. */
static uint32_t drop_run(struct map_entry *entry, int fd, uint32_t first, uint32_t end)
{
    uint32_t count = end - first;
    bool dropped = fd >= 0 && real.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)first * BLCKSZ, (off_t)count * BLCKSZ) == 0;
    if (!dropped && fd >= 0 && (errno == EOPNOTSUPP || errno == ENOSYS) && !atomic_exchange(&impossible, true))
        shim_log("the file system of the data directory cannot punch holes: the compute's disk is not bounded");
    map_finish(entry, first, end, dropped ? BLOCK_ABSENT : BLOCK_RESIDENT);
    return dropped ? count : 0;
}

/* Cells of one segment, from block `first` on. */
static uint32_t evict_cells(struct map_entry *entry, uint32_t first, uint32_t cells)
{
    uint32_t claimed[STEP_CELLS] = {0};
    uint32_t any = 0, evicted = 0;
    if (!map_try_evicting(entry))
        return 0;
    for (uint32_t c = 0; c < cells; c++)
        any |= claimed[c] = claim_cell(entry, first + c * CELL_BLOCKS);
    if (any != 0) {
        int fd = open_segment(entry);
        atomic_fetch_add(&entry->flags, ENTRY_GENERATION);
        uint32_t blocks = cells * CELL_BLOCKS;
        for (uint32_t at = 0; at < blocks;) {
            if ((claimed[at / CELL_BLOCKS] >> (at % CELL_BLOCKS) & 1) == 0) {
                at++;
                continue;
            }
            uint32_t end = at + 1;
            while (end < blocks && (claimed[end / CELL_BLOCKS] >> (end % CELL_BLOCKS) & 1) != 0)
                end++;
            evicted += drop_run(entry, fd, first + at, first + end);
            at = end;
        }
        if (fd >= 0)
            real.close(fd);
    }
    map_end_evicting(entry);
    return evicted;
}

/* Cells in the order of the hand: those of the start, then the areas. */
static uint64_t base_cells(void)
{
    return (map->lookup_offset - map->bitmaps_offset) / sizeof(struct map_cell);
}

static struct map_cell *cell_of(uint64_t number)
{
    uint64_t base = base_cells();
    return number < base ? (struct map_cell *)(void *)((char *)map + map->bitmaps_offset) + number : map_areas + (number - base);
}

/* Cells of one entry that lie together. */
struct cell_run {
    struct map_entry *entry; /* NULL: nobody's */
    uint32_t first;          /* block of the first of them */
    uint64_t cells;
};

/* The run from cell `number` on, which is one of the start's. */
static struct cell_run base_run(uint64_t number)
{
    uint64_t offset = map->bitmaps_offset + number * sizeof(struct map_cell);
    uint32_t low = 0, high = map->entry_count; /* the last entry that does not begin behind it */
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (map_entries[middle].bitmap_offset <= offset)
            low = middle;
        else
            high = middle;
    }
    struct map_entry *entry = &map_entries[low];
    uint64_t at = (offset - entry->bitmap_offset) / sizeof(struct map_cell), all = entry->base_blocks / CELL_BLOCKS;
    return at < all ? (struct cell_run){entry, (uint32_t)at * CELL_BLOCKS, all - at} : (struct cell_run){NULL, 0, 1};
}

static struct cell_run run_at(uint64_t number)
{
    uint64_t base = base_cells();
    if (number < base)
        return base_run(number);
    uint32_t at = (uint32_t)((number - base) % AREA_CELLS);
    return (struct cell_run){added_area_owner((uint32_t)((number - base) / AREA_CELLS)), at * CELL_BLOCKS, AREA_CELLS - at};
}

static uint64_t steps_around(uint64_t cells_total)
{
    return (cells_total + STEP_CELLS - 1) / STEP_CELLS;
}

/* The next step of the hand; as many as steps_around() come by every cell once. */
static uint32_t step(uint64_t cells_total)
{
    uint64_t cell = atomic_fetch_add_explicit(&map->clock_hand, 1, memory_order_relaxed) % steps_around(cells_total) * STEP_CELLS;
    uint64_t end = cell + STEP_CELLS < cells_total ? cell + STEP_CELLS : cells_total;
    uint32_t evicted = 0;
    while (cell < end) {
        if (!has_clean(cell_of(cell))) {
            cell++;
            continue;
        }
        struct cell_run run = run_at(cell);
        uint32_t count = (uint32_t)(run.cells < end - cell ? run.cells : end - cell);
        if (run.entry != NULL)
            evicted += evict_cells(run.entry, run.first, count);
        cell += count;
    }
    return evicted;
}

uint32_t cache_evict(uint32_t wanted)
{
    uint64_t cells_total = map == NULL ? 0 : base_cells() + (uint64_t)atomic_load(&map->areas) * AREA_CELLS;
    uint32_t evicted = 0;
    if (cells_total == 0 || atomic_load(&impossible))
        return 0;
    int saved_errno = errno;
    sigset_t saved;
    signals_hold(&saved);
    /* Twice around: the first time may only take marks away. */
    for (uint64_t steps = 0; steps < 2 * steps_around(cells_total) && evicted < wanted; steps++)
        evicted += step(cells_total);
    if (evicted > 0) {
        map_clean_less(evicted);
        map_count(&map->blocks_evicted, evicted);
    }
    signals_release(&saved);
    errno = saved_errno;
    return evicted;
}

void cache_settle_slow(void)
{
    uint64_t over = atomic_load(&map->clean_blocks) - atomic_load(&map->clean_budget);
    if ((int64_t)over > 0)
        cache_evict(over + SLACK_BLOCKS < SETTLE_BLOCKS_MAX ? (uint32_t)over + SLACK_BLOCKS : SETTLE_BLOCKS_MAX);
}

bool cache_make_room(size_t bytes)
{
    if (map == NULL)
        return false;
    bool made = atomic_load_explicit(&map->clean_blocks, memory_order_relaxed) != 0 && cache_evict(ROOM_BLOCKS + (uint32_t)(bytes / BLCKSZ)) > 0;
    map_count(made ? &map->rooms_made : &map->rooms_denied, 1);
    return made;
}
