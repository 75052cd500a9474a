/* Pages made by hand: which of them storage's copy stands for. */
#include "harness.h"

#include "settled_page.h"

#define LSN ((uint64_t)5 << 32 | 0x1000)
#define HORIZON 1000u

static unsigned char page[BLCKSZ];
static const struct settle_rule closed = {.lsn = LSN + 100};
static const struct settle_rule open_ones = {.lsn = LSN + 100, .open = true, .horizon = HORIZON};

static void put16(size_t at, uint16_t value)
{
    memcpy(page + at, &value, 2);
}

static void put32(size_t at, uint32_t value)
{
    memcpy(page + at, &value, 4);
}

static void header(uint64_t lsn, unsigned special)
{
    memset(page, 0, sizeof page);
    put32(0, (uint32_t)(lsn >> 32));
    put32(4, (uint32_t)lsn);
    put16(12, 24);
    put16(14, (uint16_t)(BLCKSZ - special));
    put16(16, (uint16_t)(BLCKSZ - special));
}

struct tuple {
    uint32_t xmin, xmax, cid;
    uint16_t offset, infomask;
};

/* A heap page with one dead and one unused item and this tuple. */
static void heap(struct tuple t)
{
    header(LSN, 0);
    put16(12, 24 + 12);
    put16(14, 8000);
    put32(24, 3u << 15);
    put32(32, 8000u | 1u << 15 | 40u << 17);
    put32(8000, t.xmin);
    put32(8004, t.xmax);
    put32(8008, t.cid);
    put16(8016, t.offset);
    put16(8020, t.infomask);
}

static void lsns(void)
{
    static const struct { uint64_t lsn; bool settled; } cases[] = {{0, false}, {1, false}, {1000, false}, {0xffffff, false}, {0x1000000, true}, {LSN, true}, {LSN + 100, true}, {LSN + 101, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        header(cases[i].lsn, 0);
        CHECK(settled_page(page, &closed) == cases[i].settled);
        header(cases[i].lsn, 16);
        CHECK(settled_page(page, &open_ones) == cases[i].settled);
    }
}

static void special_areas(void)
{
    header(LSN, 16);
    put16(BLCKSZ - 2, 7);
    CHECK(!settled_page(page, &closed));
    put16(BLCKSZ - 2, 0xff80); /* hash */
    CHECK(settled_page(page, &closed));
    header(LSN, 8);
    CHECK(settled_page(page, &open_ones));
    put32(BLCKSZ - 8, 0x1717);
    CHECK(!settled_page(page, &closed));
    for (unsigned at = 12; at < 18; at += 2) {
        header(LSN, 8);
        put16(at, at == 12 ? 23 : 0xffff);
        CHECK(!settled_page(page, &closed));
    }
}

static void open_transactions(void)
{
    static const struct { struct tuple tuple; bool settled; } cases[] = {
        {{900, 0, 5, 1, 0x0800}, true},          /* ended */
        {{900, 950, 5, 1, 0}, true},
        {{1000, 0, 0, 1, 0x0800}, true},         /* open, its first command */
        {{1000, 0, 1, 1, 0x0800}, false},
        {{1500, 0, 7, 1, 0x0900}, false},
        {{900, 1000, 0, 1, 0}, true},
        {{900, 1000, 3, 1, 0}, false},
        {{900, 1000, 3, 1, 0x0800}, true},       /* which aborted */
        {{1000, 1000, 0, 1, 0x0020}, false},     /* a combined command number */
        {{1000, 0, 0, 0xfffe, 0x0800}, false},   /* a speculative token */
        {{900, 5, 0, 1, 0x1000}, false},         /* a multixact */
        {{900, 5, 0, 1, 0x1800}, true},
        {{0x90000000, 0, 9, 1, 0x0b00}, true},   /* frozen */
        {{0xfffffff0, 0, 9, 1, 0x0800}, true},   /* before the circle closed */
        {{2, 0, 9, 1, 0x0800}, true},
        {{900, 0, 0, 1, 0x4800}, false},         /* moved by an old VACUUM FULL */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        heap(cases[i].tuple);
        CHECK(settled_page(page, &open_ones) == cases[i].settled);
        CHECK(settled_page(page, &closed));
    }
    heap(cases[0].tuple);
    put32(32, 8180u | 1u << 15 | 40u << 17); /* reaches beyond the page */
    CHECK(!settled_page(page, &open_ones));
    put32(32, 10u | 1u << 15 | 40u << 17);
    CHECK(!settled_page(page, &open_ones));
}

int main(void)
{
    lsns();
    special_areas();
    open_transactions();
    return 0;
}
