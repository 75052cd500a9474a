/* File names: what is a segment, what is not, and the way back. */
#include "harness.h"
#include "segment_path.h"

static void names(void)
{
    struct segment_name n;
    CHECK(segment_parse("base/5/16384", &n) && n.spc == 1663 && n.db == 5 && n.rel == 16384 && n.fork == 0 && n.segno == 0);
    CHECK(segment_parse("base/5/16384_vm.12", &n) && n.fork == 2 && n.segno == 12);
    CHECK(segment_parse("global/1262_fsm", &n) && n.spc == 1664 && n.db == 0 && n.rel == 1262 && n.fork == 1);
    CHECK(segment_parse("base/4294967295/4294967295_init.65535", &n) && n.fork == 3 && n.segno == 65535);
    const char *const others[] = {"base/5/t3_16384", "base/5/16384_", "base/5/16384_vmx", "base/5/16384.0", "base/5/16384.", "base/5/016384",
                                  "base/5/16384.65536", "base/5/4294967296", "base/5/", "base/5", "base//1", "global/pg_control", "global/",
                                  "base/5/pg_filenode.map", "pg_wal/000000010000000000000001", "base/5/16384 ", "", "global/1262/1"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        CHECK(!segment_parse(others[i], &n));
}

static void round_trip(void)
{
    for (int i = 0; i < 2000; i++) {
        bool global = i % 3 == 0;
        struct map_entry e = {.spc = global ? 1664 : 1663, .db = global ? 0 : (uint32_t)rand(), .rel = (uint32_t)rand(),
                              .fork = (uint8_t)(i % 4), .segno = (uint16_t)(rand() % 3)};
        char path[64];
        struct segment_name n;
        CHECK(segment_format(&e, path, sizeof path) == strlen(path) && segment_parse(path, &n));
        CHECK(n.spc == e.spc && n.db == e.db && n.rel == e.rel && n.fork == e.fork && n.segno == e.segno);
    }
    struct map_entry foreign = {.spc = 99999, .db = 1, .rel = 1};
    char small[4];
    CHECK(segment_format(&foreign, small, sizeof small) == 0);
    foreign.spc = 1663;
    CHECK(segment_format(&foreign, small, sizeof small) == 0);
}

static void user_tablespaces(void)
{
    struct map_entry e = {.spc = 16400, .db = 5, .rel = 16384, .fork = 2, .segno = 1};
    struct segment_name n;
    char path[160];
    uint32_t spc, db;
    CHECK(!segment_parse("pg_tblspc/16400/PG_18_202506291/5/16384_vm.1", &n) && segment_format(&e, path, sizeof path) == 0);
    CHECK(!segment_path_tablespaces("PG_18/..") && segment_path_tablespaces("PG_18_202506291"));
    CHECK(segment_format(&e, path, sizeof path) > 0 && strcmp(path, "pg_tblspc/16400/PG_18_202506291/5/16384_vm.1") == 0);
    CHECK(segment_parse(path, &n) && n.spc == 16400 && n.db == 5 && n.rel == 16384 && n.fork == 2 && n.segno == 1);
    const char *const others[] = {"pg_tblspc/16400/PG_17_202406281/5/16384", "pg_tblspc/16400/PG_18_202506291/5", "pg_tblspc/16400",
                                  "pg_tblspc/16400/PG_18_202506291/pgsql_tmp/1", "pg_tblspc/x/PG_18_202506291/5/16384"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        CHECK(!segment_parse(others[i], &n));
    struct segment segments[] = {{{16400, 5, 10, 0, 0}, 4}};
    layout_mode = "lazy";
    start_shim(segments, 1);
    CHECK(segment_path_entry("pg_tblspc/16400/PG_18_202506291/5/10") == -1); /* no tablespace was there at the start */
    CHECK(mkdir("pg_tblspc", 0700) == 0 && mkdir("pg_tblspc/16400", 0700) == 0 && mkdir("pg_tblspc/16400/PG_18_202506291", 0700) == 0);
    CHECK(segment_path_start(segment_path_datadir()));
    CHECK(segment_path_entry("pg_tblspc/16400/PG_18_202506291/5/10") == 0);
    CHECK(segment_path_directory("pg_tblspc/16400/PG_18_202506291/5", &spc, &db) && spc == 16400 && db == 5);
    CHECK(!segment_path_directory("pg_tblspc/16400/PG_18_202506291", &spc, &db) && !segment_path_directory("pg_tblspc", &spc, &db));
    remove_shim();
    segment_path_tablespaces(NULL);
}

static void entries(void)
{
    struct segment segments[] = {{{1663, 5, 10, 0, 0}, 4}, {{1663, 5, 10, 0, 1}, 4}, {{1663, 5, 11, 2, 0}, 4}, {{1664, 0, 1262, 0, 0}, 1}};
    start_shim(segments, 4);
    char absolute[200];
    CHECK(segment_path_entry("base/5/10") == 0 && segment_path_entry("base/5/10.1") == 1 && segment_path_entry("global/1262") == 3);
    CHECK(segment_path_entry("./base/5/11_vm") == 2 && segment_path_entry(".//base/5/10") == 0);
    CHECK(segment_path_entry("base/5/12") == -1 && segment_path_entry("base/5/10_vm") == -1);
    snprintf(absolute, sizeof absolute, "%s/data/base/5/10.1", base_directory);
    CHECK(segment_path_entry(absolute) == 1);
    snprintf(absolute, sizeof absolute, "%s/other/base/5/10.1", base_directory);
    CHECK(segment_path_entry(absolute) == -1);
    struct stat st;
    CHECK(stat("base/5/10.1", &st) == 0 && st.st_size == 4 * BLCKSZ && st.st_blocks == 0 && (st.st_mode & 0777) == 0600);
    remove_shim();
}

int main(void)
{
    names();
    round_trip();
    entries();
    user_tablespaces();
    return 0;
}
