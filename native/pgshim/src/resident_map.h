/* The resident map: which blocks of which segment files are on the local disk, shared by every process of a compute.
 * Layout and rules: docs/protocols/shim-agent.md.
 *
 * Invariants
 * - A block leaves ABSENT only by compare-and-swap, and only the process that made it BUSY may take it out of BUSY.
 * - RESIDENT goes back to ABSENT only through BUSY, by whoever holds ENTRY_EVICTING, who changes the generation of the entry before a byte goes.
 *   A reader that finds the same generation before it looked at nblocks and the states, and after its read, has read what was there.
 * - WRITTEN becomes RESIDENT, nblocks grows, and entries are added only while the gate is closed (gate.h): no write, truncation, unlinking or renaming
 *   is under way then.
 * - Whoever stores RESIDENT or WRITTEN has finished pwrite before (release); whoever reads the state does so before its own read
 *   (acquire). The kernel's page cache does the rest.
 * - Who holds a busy block waits only for blocks of higher number in the same segment, so waits cannot form a circle. */
#ifndef PGSHIM_RESIDENT_MAP_H
#define PGSHIM_RESIDENT_MAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MAP_MAGIC 0x4C42524Du
#define MAP_VERSION 3u

enum block_state { BLOCK_ABSENT = 0, BLOCK_BUSY = 1, BLOCK_RESIDENT = 2, BLOCK_WRITTEN = 3 };

#define ENTRY_DROPPED 1u /* unlinked: later files of that name are local */
#define ENTRY_LAYING 2u  /* some process is creating the sparse file */
#define ENTRY_LAID 4u    /* the file exists, at its full length */
#define ENTRY_EVICTING 8u /* some process drops clean blocks of it */
#define ENTRY_HELD 16u    /* a truncation or renaming is under way: nothing is dropped */
#define ENTRY_GENERATION 256u /* one in the counter of droppings, which is the rest of the word */

/* 32 blocks: two bits of state each, one bit that somebody read or wrote it since the clock came by, one that it was written in this round. */
#define CELL_BLOCKS 32u
struct map_cell {
    _Atomic uint32_t states[2];
    _Atomic uint32_t accessed;
    _Atomic uint32_t young;
};
_Static_assert(sizeof(struct map_cell) == 16, "cell layout");

struct map_header {
    uint32_t magic;
    uint32_t version;
    uint32_t entry_count;
    _Atomic uint32_t waiters; /* processes in map_sleep(): lets the common case skip the wake-up call */
    uint64_t entries_offset;
    uint64_t bitmaps_offset;
    uint64_t total_bytes;
    _Atomic uint64_t fault_requests;
    _Atomic uint64_t blocks_fetched;
    _Atomic uint64_t blocks_written;
    _Atomic uint64_t waits;
    _Atomic uint64_t errors;
    /* Back-pressure: the shim says how far WAL is written, the agent how long each page of it has to take. */
    _Atomic uint64_t wal_position;  /* end of the farthest write into a WAL segment */
    _Atomic uint64_t wal_delay_ns;  /* by the agent: for every 8192 bytes of WAL */
    _Atomic uint64_t wal_slept_ns;
    /* The bound on clean blocks. */
    _Atomic uint64_t clean_blocks;  /* RESIDENT now; an estimate while files are being dropped */
    _Atomic uint64_t clean_budget;  /* 0: no bound */
    _Atomic uint64_t blocks_evicted;
    _Atomic uint64_t clock_hand;    /* next step of the hand, modulo their number */
    _Atomic uint64_t rooms_made;    /* writes that found the disk full and went on after blocks were dropped */
    _Atomic uint64_t rooms_denied;  /* and those for which nothing could be dropped */
    _Atomic uint64_t scratch_bytes; /* by the cache worker: what lies below the data directory */
    _Atomic uint64_t blocks_prefetched;
    /* Rounds. */
    _Atomic uint64_t inside;      /* who is past the gate */
    _Atomic uint32_t gate;        /* pid of who has closed it; 0: open */
    _Atomic uint32_t added;       /* entries added since the start */
    _Atomic uint64_t fetch_epoch; /* changes after the agent began to fetch at a later LSN, before the first block of a round becomes clean */
    _Atomic uint64_t round;
    _Atomic uint64_t blocks_settled;
    _Atomic uint64_t blocks_adopted;
    uint32_t added_max;
    uint32_t areas_max;
    uint64_t lookup_offset;
    uint64_t areas_offset;
    _Atomic uint32_t areas; /* taken */
    uint32_t reserved32;
    uint64_t reserved;
};
_Static_assert(sizeof(struct map_header) == 256, "header layout");

struct map_entry {
    uint32_t spc;
    uint32_t db;
    uint32_t rel;
    uint8_t fork;
    uint8_t source_fork;
    uint16_t segno;
    _Atomic uint32_t nblocks;
    _Atomic uint32_t flags;
    uint64_t bitmap_offset;
    uint32_t base_blocks;  /* cells of blocks below it lie at bitmap_offset, of others in the area */
    _Atomic uint32_t area; /* number + 1; 0: none, so no tracked blocks from base_blocks on */
    uint64_t reserved;
};
_Static_assert(sizeof(struct map_entry) == 48, "entry layout");

/* Cells for all blocks of a segment. */
#define AREA_CELLS 4096u
#define AREA_BLOCKS (AREA_CELLS * CELL_BLOCKS)

/* What a file name under the data directory says. */
struct segment_name {
    uint32_t spc;
    uint32_t db;
    uint32_t rel;
    uint8_t fork;
    uint16_t segno;
};

extern struct map_header *map;        /* NULL: pass everything through */
extern struct map_entry *map_entries; /* map->entry_count of them, sorted; then map->added more */
extern struct map_cell *map_areas;

/* Maps and checks the file. NULL, or what is wrong with it (static text). */
const char *map_open(const char *path);
void map_close(void);

/* How many entries there are now. */
static inline uint32_t map_length(void)
{
    return map->entry_count + atomic_load(&map->added);
}

/* Index of the entry of that name, added ones included, or -1. */
int32_t map_find(const struct segment_name *name);
/* Index of the first entry of the start that is not before `name`. */
int32_t map_lower_bound(const struct segment_name *name);

static inline uint32_t map_nblocks(struct map_entry *entry)
{
    return atomic_load_explicit(&entry->nblocks, memory_order_acquire);
}

static inline bool map_is_dropped(struct map_entry *entry)
{
    return (atomic_load_explicit(&entry->flags, memory_order_acquire) & ENTRY_DROPPED) != 0;
}

static inline struct map_cell *map_cell(struct map_entry *entry, uint32_t block)
{
    if (block < entry->base_blocks)
        return (struct map_cell *)(void *)((char *)map + entry->bitmap_offset) + block / CELL_BLOCKS;
    uint32_t area = atomic_load_explicit(&entry->area, memory_order_relaxed); /* taken before nblocks grew beyond base_blocks */
    return map_areas + (size_t)(area - 1) * AREA_CELLS + block / CELL_BLOCKS;
}

static inline _Atomic uint32_t *map_word(struct map_entry *entry, uint32_t block)
{
    return &map_cell(entry, block)->states[block / 16 % 2];
}

static inline enum block_state map_state_in(struct map_cell *cell, uint32_t at)
{
    return (enum block_state)((atomic_load_explicit(&cell->states[at / 16], memory_order_acquire) >> (at % 16 * 2)) & 3);
}

/* Changes whenever blocks of the entry are about to be dropped. */
static inline uint32_t map_generation(struct map_entry *entry)
{
    return atomic_load(&entry->flags) / ENTRY_GENERATION;
}

static inline enum block_state map_state(struct map_entry *entry, uint32_t block)
{
    return (enum block_state)((atomic_load_explicit(map_word(entry, block), memory_order_acquire) >> (block % 16 * 2)) & 3);
}

/* True when every block of [first, end) is resident or written: the check every read pays. */
bool map_all_resident(struct map_entry *entry, uint32_t first, uint32_t end);
/* True when every block of [first, end) is written: the check every write pays. */
bool map_all_written(struct map_entry *entry, uint32_t first, uint32_t end);

/* Inside the gate, before a write to blocks [first, end): this round leaves them alone. */
void map_mark_young(struct map_entry *entry, uint32_t first, uint32_t end);
/* With the gate closed: takes the marks of all blocks away; makes blocks [first, end) written ones. */
void map_clear_young(void);
void map_make_written(struct map_entry *entry, uint32_t first, uint32_t end);
static inline bool map_is_young(struct map_entry *entry, uint32_t block)
{
    return (atomic_load(&map_cell(entry, block)->young) >> block % CELL_BLOCKS & 1) != 0;
}

/* Remembers that blocks [first, end) were used. */
void map_touch(struct map_entry *entry, uint32_t first, uint32_t end);

/* ENTRY_EVICTING: false at once when somebody has it, or the entry is dropped or held. */
bool map_try_evicting(struct map_entry *entry);
void map_end_evicting(struct map_entry *entry);
/* ENTRY_HELD: waits for droppings under way; 0, or EIO when their owner seems gone for good. */
int map_hold(struct map_entry *entry);
void map_release(struct map_entry *entry);

/* Number of RESIDENT blocks of the entry. */
uint32_t map_count_clean(struct map_entry *entry);

/* from -> to; false when the block was not `from`. */
bool map_swap(struct map_entry *entry, uint32_t block, enum block_state from, enum block_state to);

/* Blocks [first, end), busy by us, become `to`; then waiters are woken. */
void map_finish(struct map_entry *entry, uint32_t first, uint32_t end, enum block_state to);

/* Returns when the block is not busy: 0, or EIO when its owner seems gone for good. */
int map_wait(struct map_entry *entry, uint32_t block);

/* Sleeps while *word is `value`, a second at most; wakes everybody who sleeps on it. */
void map_sleep(_Atomic uint32_t *word, uint32_t value);
void map_wake(_Atomic uint32_t *word);

/* Number of blocks right before `block` that are not absent, at most `limit`: how sequential this miss looks. */
uint32_t map_run_before(struct map_entry *entry, uint32_t block, uint32_t limit);

/* The estimate never goes below zero: a reader of it as unsigned would see a full disk. */
static inline void map_clean_less(uint64_t n)
{
    uint64_t old = atomic_load_explicit(&map->clean_blocks, memory_order_relaxed);
    while (!atomic_compare_exchange_weak(&map->clean_blocks, &old, old > n ? old - n : 0))
        ;
}

static inline void map_count(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

#endif
