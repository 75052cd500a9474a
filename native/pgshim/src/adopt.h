/* What Postgres has added since the start: new segment files of main forks, and blocks at the end of known ones. A round adopts it: it is tracked from then on. */
#ifndef PGSHIM_ADOPT_H
#define PGSHIM_ADOPT_H

#include <stdbool.h>

#include "resident_map.h"

/* Looks through the data directory; takes its time. */
void adopt_look(void);
/* With the gate closed: adopts what that found, as it is now. */
void adopt_found(void);

/* Whether the entry is of an unlogged relation: it has an init fork, which may not have been laid out. */
bool adopt_is_unlogged(const struct map_entry *entry);

#endif
