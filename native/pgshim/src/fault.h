/* What has to happen before and after a file call on a segment, in terms of byte ranges. All of it is for blocks below the entry's nblocks;
 * everything above is local and passes through, but may be adopted by a round (settle.h): writes go through the gate, reads look again after. */
#ifndef PGSHIM_FAULT_H
#define PGSHIM_FAULT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "resident_map.h"
#include "util.h"

/* Blocks one write may claim at once; a longer write faults its blocks first. */
#define CLAIM_BLOCKS_MAX 256u

/* The blocks of [offset, offset + length) that storage may have, as [first, end). */
struct block_range {
    uint32_t first;
    uint32_t end;
};

static inline struct block_range tracked_blocks(struct map_entry *entry, off_t offset, size_t length)
{
    uint32_t nblocks = map_nblocks(entry);
    if (offset < 0 || length == 0 || offset / BLCKSZ >= (off_t)nblocks)
        return (struct block_range){0, 0};
    uint64_t last = ((uint64_t)offset + (length - 1)) / BLCKSZ;
    return (struct block_range){(uint32_t)(offset / BLCKSZ), last + 1 < nblocks ? (uint32_t)last + 1 : nblocks};
}

/* Makes every tracked block of the range resident; 0 or an errno. The slow half of fault_before_read. */
int fault_blocks(struct map_entry *entry, int fd, struct block_range range);

/* A read in progress: whoever drops blocks of the segment meanwhile changes its generation. That goes for blocks that were local when the read began, too. */
struct read_guard {
    uint32_t generation;
};

/* Before a read: 0, or an errno the read must fail with. No system call when the blocks are resident. */
static inline int fault_before_read(struct read_guard *guard, struct map_entry *entry, int fd, off_t offset, size_t length)
{
    for (;;) {
        guard->generation = map_generation(entry);
        struct block_range range = tracked_blocks(entry, offset, length);
        if (likely(map_all_resident(entry, range.first, range.end))) {
            map_touch(entry, range.first, range.end);
            return 0;
        }
        int error = fault_blocks(entry, fd, range);
        if (error != 0)
            return error;
    }
}

/* After it: false when a block may have been dropped under the read, which then has to be done again. */
static inline bool fault_read_holds(const struct read_guard *guard, struct map_entry *entry)
{
    return likely(map_generation(entry) == guard->generation);
}

/* A read of clean pages that this process was the last to fetch: true when it got them from memory. Clean pages are what storage has, whoever wrote them
 * into the file, so what was fetched is what the file says for as long as they are clean. */
bool fault_read_buffered(struct map_entry *entry, const struct iovec *vector, off_t offset, size_t length);

/* A read whose blocks cannot be kept, because the disk is full of what cannot be dropped: absent blocks go from storage to the reader only. */
ssize_t fault_read_past(struct map_entry *entry, int fd, const struct iovec *vector, int count, off_t offset);

/* A write in progress: inside the gate, from begin to end. Signals are held when `held`. */
struct write_claim {
    struct map_entry *entry; /* NULL: the file is local */
    off_t offset;
    uint32_t first;
    uint32_t claimed_count;
    uint64_t claimed[CLAIM_BLOCKS_MAX / 64]; /* blocks we made busy, relative to first */
    bool held;
    sigset_t saved;
};

/* Before a write to a segment: 0, or an errno the write must fail with. */
int fault_begin_write(struct write_claim *claim, int fd, off_t offset, size_t length);
/* After it, with its result; returns the result to report (errno set when -1). */
ssize_t fault_end_write(struct write_claim *claim, ssize_t result);

/* Truncation to `length` bytes, inside the gate: begin, the real call, end with whether it worked. Returns 0 or an errno. */
struct truncate_claim {
    struct map_entry *entry;
    uint32_t first;
    uint32_t end;
    bool cut; /* block first - 1 loses its tail */
    bool held;
    sigset_t saved;
};
int fault_begin_truncate(struct truncate_claim *claim, struct map_entry *entry, int fd, off_t length);
void fault_end_truncate(struct truncate_claim *claim, bool worked);

/* In a forked child: nobody else holds the fault lock. */
void fault_after_fork(void);

#endif
