/* Rounds. The proof is in docs/protocols/shim-agent.md, Rounds.
 *
 * Invariants
 * - Marks of youth are taken away with the gate closed, and set inside it before the bytes are written. So with the gate closed again, a block without a mark
 *   was not written since, and what was read of it in between is what it holds.
 * - A block leaves WRITTEN with the gate closed only, and without its mark. */
#define _GNU_SOURCE
#include "settle.h"

#include <sys/stat.h>
#include <unistd.h>

#include "adopt.h"
#include "crypt.h"
#include "gate.h"
#include "util.h"

#define FORK_MAIN 0
/* Blocks that are looked at before the gate is closed for them. */
#define PIECE_BLOCKS 1024u
#define WRITTEN_BITS(word) ((word) & (word) << 1 & 0xAAAAAAAAu)

bool (*settle_judge)(const unsigned char *page, const struct settle_rule *rule) = settled_page;

uint64_t settle_begin(void)
{
    adopt_look();
    if (!gate_close())
        return 0;
    adopt_found();
    map_clear_young();
    uint64_t round = atomic_fetch_add(&map->round, 1) + 1;
    gate_open();
    return round;
}

void settle_open(void)
{
    atomic_fetch_add(&map->fetch_epoch, 1);
}

static bool has_written(struct map_entry *entry)
{
    uint32_t nblocks = map_nblocks(entry);
    for (uint32_t block = 0; block < nblocks; block += 16)
        if (WRITTEN_BITS(atomic_load_explicit(map_word(entry, block), memory_order_relaxed)) != 0)
            return true;
    return false;
}

bool settle_covers(struct map_entry *entry)
{
    return entry->fork == FORK_MAIN && !map_is_dropped(entry) && has_written(entry) && !adopt_is_unlogged(entry);
}

static bool is_old(struct map_entry *entry, uint32_t block)
{
    return map_state(entry, block) == BLOCK_WRITTEN && !map_is_young(entry, block);
}

/* Blocks of [first, end) that may go, as far as can be said with the gate open. */
static uint32_t look(struct map_entry *entry, int fd, uint32_t first, uint32_t end, const struct settle_rule *rule, bool may_go[])
{
    static _Alignas(4096) unsigned char page[BLCKSZ];
    uint32_t found = 0;
    for (uint32_t block = first; block < end; block++) {
        may_go[block - first] =
            is_old(entry, block) && crypt_pread(fd, page, BLCKSZ, (off_t)block * BLCKSZ) == BLCKSZ && settle_judge(page, rule);
        found += may_go[block - first];
    }
    return found;
}

/* Those that were not written meanwhile. */
static uint32_t settle_piece(struct map_entry *entry, uint32_t first, uint32_t end, const bool may_go[])
{
    uint32_t settled = 0;
    if (!gate_close())
        return 0;
    for (uint32_t block = first; block < end && block < map_nblocks(entry) && !map_is_dropped(entry); block++) {
        if (!may_go[block - first] || !is_old(entry, block))
            continue;
        map_count(&map->clean_blocks, 1); /* before somebody can take it off again */
        if (map_swap(entry, block, BLOCK_WRITTEN, BLOCK_RESIDENT))
            settled++;
        else
            map_clean_less(1);
    }
    gate_open();
    return settled;
}

uint32_t settle_sweep(struct map_entry *entry, int fd, uint32_t limit, const struct settle_rule *rule)
{
    static bool may_go[PIECE_BLOCKS];
    struct stat st;
    uint32_t settled = 0, nblocks = map_nblocks(entry);
    uint32_t end = limit < nblocks ? limit : nblocks;
    if (fstat(fd, &st) != 0 || (entry->segno == 0 && st.st_size <= BLCKSZ)) /* perhaps a sequence */
        return 0;
    for (uint32_t first = 0; first < end; first += PIECE_BLOCKS) {
        uint32_t piece_end = end - first < PIECE_BLOCKS ? end : first + PIECE_BLOCKS;
        if (look(entry, fd, first, piece_end, rule, may_go) > 0)
            settled += settle_piece(entry, first, piece_end, may_go);
    }
    if (settled > 0)
        map_count(&map->blocks_settled, settled);
    return settled;
}
