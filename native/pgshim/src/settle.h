/* Rounds: changed blocks that storage has become clean ones, which can be dropped. docs/protocols/shim-agent.md, Rounds.
 * One process runs rounds, the cache worker, as the agent tells it: begin, wait for quiet, (the agent waits for storage), open, sweep. */
#ifndef PGSHIM_SETTLE_H
#define PGSHIM_SETTLE_H

#include <stdbool.h>
#include <stdint.h>

#include "resident_map.h"
#include "settled_page.h"

/* settled_page(), but for tests whose pages are none. */
extern bool (*settle_judge)(const unsigned char *page, const struct settle_rule *rule);

/* Takes the marks of youth away and begins a round. Its number, or 0 while a write of the round before last is still under way. */
uint64_t settle_begin(void);
/* True when every write that began before the round is over. */
bool settle_quiet(void);
/* From now on no page is installed that was fetched before this call. */
void settle_open(void);
/* Whether blocks of this segment can be settled at all. */
bool settle_covers(struct map_entry *entry);
/* Whether it has any block in WRITTEN. */
bool settle_has_written(struct map_entry *entry);
/* Blocks of one segment from `first` on that were not written in this round and are as good in storage become clean; `fd` is open on it. Looks at
 * `count` blocks; returns how many became clean. */
uint32_t settle_sweep(struct map_entry *entry, int fd, uint32_t first, uint32_t count, const struct settle_rule *rule);

#endif
