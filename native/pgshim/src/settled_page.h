/* Whether storage's copy of a page is as good as the one in the file: everything about it that is not in WAL needs to be something nobody misses. */
#ifndef PGSHIM_SETTLED_PAGE_H
#define PGSHIM_SETTLED_PAGE_H

#include <stdbool.h>
#include <stdint.h>

/* What a round knows. */
struct settle_rule {
    uint64_t lsn;     /* storage has all WAL up to here, and the page was written to the file before WAL was that long */
    bool open;        /* transactions of before are still open: `horizon` says which */
    uint32_t horizon; /* transactions before it (of 32 bits, in a circle) have ended */
};

/* `page`: 8192 bytes of the main fork of a permanent relation. */
bool settled_page(const unsigned char *page, const struct settle_rule *rule);

#endif
