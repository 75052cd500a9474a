/* The resident map: which blocks of which segment files are on the local disk, shared by every process of a compute.
 * Layout and rules: docs/protocols/shim-agent.md.
 *
 * Invariants
 * - A block leaves ABSENT only by compare-and-swap, and only the process that made it BUSY may take it out of BUSY.
 * - RESIDENT and WRITTEN are final for the life of the compute: nobody ever puts such a block back.
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
#define MAP_VERSION 1u

enum block_state { BLOCK_ABSENT = 0, BLOCK_BUSY = 1, BLOCK_RESIDENT = 2, BLOCK_WRITTEN = 3 };

#define ENTRY_DROPPED 1u /* unlinked: later files of that name are local */
#define ENTRY_LAYING 2u  /* some process is creating the sparse file */
#define ENTRY_LAID 4u    /* the file exists, at its full length */

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
    uint64_t reserved[6];
};
_Static_assert(sizeof(struct map_header) == 128, "header layout");

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
};
_Static_assert(sizeof(struct map_entry) == 32, "entry layout");

/* What a file name under the data directory says. */
struct segment_name {
    uint32_t spc;
    uint32_t db;
    uint32_t rel;
    uint8_t fork;
    uint16_t segno;
};

extern struct map_header *map;        /* NULL: pass everything through */
extern struct map_entry *map_entries; /* map->entry_count of them, sorted */

/* Maps and checks the file. NULL, or what is wrong with it (static text). */
const char *map_open(const char *path);
void map_close(void);

/* Index of the entry of that name, or -1. */
int32_t map_find(const struct segment_name *name);
/* Index of the first entry that is not before `name`. */
int32_t map_lower_bound(const struct segment_name *name);

static inline uint32_t map_nblocks(struct map_entry *entry)
{
    return atomic_load_explicit(&entry->nblocks, memory_order_acquire);
}

static inline bool map_is_dropped(struct map_entry *entry)
{
    return (atomic_load_explicit(&entry->flags, memory_order_acquire) & ENTRY_DROPPED) != 0;
}

static inline _Atomic uint32_t *map_word(struct map_entry *entry, uint32_t block)
{
    return (_Atomic uint32_t *)(void *)((char *)map + entry->bitmap_offset) + block / 16;
}

static inline enum block_state map_state(struct map_entry *entry, uint32_t block)
{
    return (enum block_state)((atomic_load_explicit(map_word(entry, block), memory_order_acquire) >> (block % 16 * 2)) & 3);
}

/* True when every block of [first, end) is resident or written: the check every read pays. */
bool map_all_resident(struct map_entry *entry, uint32_t first, uint32_t end);
/* True when every block of [first, end) is written: the check every write pays. */
bool map_all_written(struct map_entry *entry, uint32_t first, uint32_t end);

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

static inline void map_count(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

#endif
