/* Rounds: changed blocks that storage has become clean ones, which can be dropped. docs/protocols/shim-agent.md, Rounds.
 * One process runs rounds, the cache worker, as the agent tells it: begin, (the agent waits for storage), open, sweep. */
#ifndef PGSHIM_SETTLE_H
#define PGSHIM_SETTLE_H

#include <stdbool.h>
#include <stdint.h>

#include "resident_map.h"
#include "settled_page.h"

/* settled_page(), but for tests whose pages are none. */
extern bool (*settle_judge)(const unsigned char *page, const struct settle_rule *rule);

/* Begins a round: what Postgres has added to files is adopted (adopt.h), and every block may become clean that is not written from now on. Its number, or 0
 * when writes were under way all the time. */
uint64_t settle_begin(void);
/* From now on no page is installed that was asked for before this call. */
void settle_open(void);
/* Whether blocks of this segment can be settled at all, and some are written. */
bool settle_covers(struct map_entry *entry);
/* Blocks of one segment below `limit` that were not written in this round and are as good in storage become clean; `fd` is open on it. Returns how many. */
uint32_t settle_sweep(struct map_entry *entry, int fd, uint32_t limit, const struct settle_rule *rule);

#endif
