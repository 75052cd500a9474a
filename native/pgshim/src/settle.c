/* Rounds. The proof is in docs/protocols/shim-agent.md, Rounds.
 *
 * Invariants
 * - The marks are all cleared before the number of the round changes: a write that began in this round has its marks until the next one.
 * - A block leaves WRITTEN by way of BUSY, and its mark is looked at while it is BUSY; a write sets the mark first and looks at the state then.
 *   So one of the two sees the other: the sweep leaves the block alone, or the write waits for it and takes it back.
 * - While blocks are BUSY this process holds ENTRY_EVICTING, as for dropping: truncations find busy blocks of their own only. */
#define _GNU_SOURCE
#include "settle.h"

#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "crypt.h"
#include "libc.h"
#include "segment_path.h"
#include "util.h"

#define FORK_MAIN 0
#define FORK_INIT 3
/* Blocks under one hold of the segment. */
#define PIECE_BLOCKS 64u

bool (*settle_judge)(const unsigned char *page, const struct settle_rule *rule) = settled_page;

uint64_t settle_begin(void)
{
    uint64_t round = atomic_load(&map->round);
    if (atomic_load(&map->writers[(round + 1) % 2]) != 0)
        return 0;
    struct map_cell *cells = (struct map_cell *)(void *)((char *)map + map->bitmaps_offset);
    uint64_t count = (map->total_bytes - map->bitmaps_offset) / sizeof *cells;
    for (uint64_t i = 0; i < count; i++)
        if (atomic_load_explicit(&cells[i].young, memory_order_relaxed) != 0)
            atomic_store(&cells[i].young, 0);
    atomic_store(&map->round, round + 1);
    return round + 1;
}

bool settle_quiet(void)
{
    return atomic_load(&map->writers[(atomic_load(&map->round) + 1) % 2]) == 0;
}

void settle_open(void)
{
    atomic_fetch_add(&map->fetch_epoch, 1);
}

/* Unlogged: it has an init fork, which the shim may not have laid out. */
static bool is_unlogged(const struct map_entry *entry)
{
    struct map_entry init = {.spc = entry->spc, .db = entry->db, .rel = entry->rel, .fork = FORK_INIT};
    char path[PATH_MAX + 192], name[160];
    if (entry->source_fork != entry->fork || map_find(&(struct segment_name){entry->spc, entry->db, entry->rel, FORK_INIT, 0}) >= 0)
        return true;
    if (segment_format(&init, name, sizeof name) == 0)
        return true;
    snprintf(path, sizeof path, "%s/%s", segment_path_datadir(), name);
    return real.access(path, F_OK) == 0;
}

bool settle_covers(struct map_entry *entry)
{
    return entry->fork == FORK_MAIN && !map_is_dropped(entry) && map_nblocks(entry) > 0 && !is_unlogged(entry);
}

bool settle_has_written(struct map_entry *entry)
{
    uint32_t nblocks = map_nblocks(entry);
    for (uint32_t block = 0; block < nblocks; block += 16) {
        uint32_t word = atomic_load_explicit(map_word(entry, block), memory_order_relaxed);
        if ((word & word << 1 & 0xaaaaaaaau) != 0)
            return true;
    }
    return false;
}

/* Any block of the 16 at `first` that is written and not young? */
static bool worth_a_look(struct map_entry *entry, uint32_t first)
{
    struct map_cell *cell = map_cell(entry, first);
    uint32_t word = atomic_load_explicit(&cell->states[first / 16 % 2], memory_order_relaxed);
    uint32_t young = atomic_load_explicit(&cell->young, memory_order_relaxed) >> first % CELL_BLOCKS & 0xffff;
    return (word & word << 1 & 0xaaaaaaaau) != 0 && young != 0xffff;
}

static bool is_young(struct map_entry *entry, uint32_t block)
{
    return (atomic_load(&map_cell(entry, block)->young) >> block % CELL_BLOCKS & 1) != 0;
}

static bool settle_block(struct map_entry *entry, int fd, uint32_t block, const struct settle_rule *rule)
{
    static _Alignas(4096) unsigned char page[BLCKSZ];
    if (!map_swap(entry, block, BLOCK_WRITTEN, BLOCK_BUSY))
        return false;
    bool settled = !is_young(entry, block) && crypt_pread(fd, page, BLCKSZ, (off_t)block * BLCKSZ) == BLCKSZ && settle_judge(page, rule);
    if (settled)
        map_count(&map->clean_blocks, 1); /* before somebody can take it off again */
    map_finish(entry, block, block + 1, settled ? BLOCK_RESIDENT : BLOCK_WRITTEN);
    return settled;
}

uint32_t settle_sweep(struct map_entry *entry, int fd, uint32_t first, uint32_t count, const struct settle_rule *rule)
{
    struct stat st;
    uint32_t settled = 0, nblocks = map_nblocks(entry);
    uint32_t end = count < nblocks - (first < nblocks ? first : nblocks) ? first + count : nblocks;
    if (fstat(fd, &st) != 0 || (entry->segno == 0 && st.st_size <= BLCKSZ)) /* perhaps a sequence */
        return 0;
    sigset_t saved;
    signals_hold(&saved);
    for (uint32_t piece = first; piece < end; piece = (piece / PIECE_BLOCKS + 1) * PIECE_BLOCKS) {
        uint32_t piece_end = (piece / PIECE_BLOCKS + 1) * PIECE_BLOCKS < end ? (piece / PIECE_BLOCKS + 1) * PIECE_BLOCKS : end;
        bool held = false;
        for (uint32_t block = piece; block < piece_end; block++) {
            if (block % 16 == 0 && !worth_a_look(entry, block)) {
                block += 15;
                continue;
            }
            if (!held && !(held = map_try_evicting(entry)))
                break;
            if (block < map_nblocks(entry)) /* a truncation may have come before */
                settled += settle_block(entry, fd, block, rule);
        }
        if (held)
            map_end_evicting(entry);
    }
    signals_release(&saved);
    if (settled > 0)
        map_count(&map->blocks_settled, settled);
    return settled;
}
