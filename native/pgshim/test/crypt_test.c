/* Encrypted files: what they hold against a model in plain memory, at all offsets and lengths, through every call; names and copies; neighbours
 * that share a block; and that the bytes on the disk are those node:crypto would write. */
#include "harness.h"

#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/uio.h>

#include "fd_table.h"
#include "libc.h"
#include "xts.h"

#define MODEL_MAX (300u * 1024)

static unsigned char model[MODEL_MAX];
static size_t model_length;
static unsigned char scratch[MODEL_MAX];
static unsigned seed;

static unsigned draw(unsigned below)
{
    return (unsigned)rand_r(&seed) % below;
}

static void begin(void)
{
    start_shim(NULL, 0);
    CHECK(mkdir("pg_wal", 0700) == 0 && mkdir("pg_stat_tmp", 0700) == 0);
}

/* Bytes that tell where they belong. */
static void fill(unsigned char *to, size_t length)
{
    for (size_t i = 0; i < length; i++)
        to[i] = (unsigned char)rand_r(&seed);
}

static void from_hex(const char *hex, unsigned char to[16])
{
    for (int i = 0; i < 16; i++) {
        unsigned byte;
        CHECK(sscanf(hex + 2 * i, "%2x", &byte) == 1);
        to[i] = (unsigned char)byte;
    }
}

/* Expected values: node:crypto, aes-256-xts, over the same key, tweak and page. */
static void known_answers(bool use_vaes)
{
    static unsigned char page[XTS_UNIT], out[XTS_UNIT];
    unsigned char expected[16], tail[16] = {0};
    for (size_t i = 0; i < sizeof page; i++)
        page[i] = (unsigned char)(i * 7);
    CHECK(xts_start(test_key) == NULL);
    xts_use_vaes(use_vaes);
    CHECK(xts_encrypt(0x123456789, 3 * XTS_UNIT, page, out, sizeof page) == 0);
    from_hex("a72dcc6840644d642aca6809570567f2", expected);
    CHECK(memcmp(out, expected, 16) == 0);
    from_hex("f80d15120b652d57a761def048b9b60a", expected);
    CHECK(memcmp(out + 5008, expected, 16) == 0);
    from_hex("c1717bc0b8c0fa2faa97cc79ff885504", expected);
    CHECK(memcmp(out + 8176, expected, 16) == 0);
    from_hex("29ece0ed37966b9803ed6d647c1d4f92", expected);
    CHECK(xts_tail(0x123456789, 3 * XTS_UNIT + 16, tail, 15) == 0 && memcmp(tail, expected, 15) == 0);
    /* Any range of whole blocks alone gives the same bytes. */
    for (size_t first = 0; first < XTS_UNIT; first += 16 * (1 + draw(20)))
        for (size_t length = 16; first + length <= XTS_UNIT; length += 16 * (1 + draw(200))) {
            CHECK(xts_encrypt(0x123456789, (off_t)(3 * XTS_UNIT + first), page + first, scratch, length) == 0 && memcmp(scratch, out + first, length) == 0);
            CHECK(xts_decrypt(0x123456789, (off_t)(3 * XTS_UNIT + first), scratch, length) == 0 && memcmp(scratch, page + first, length) == 0);
        }
    /* Zeros on the disk are zeros, wherever they are. */
    memset(out + 160, 0, 16);
    memset(out + 8000, 0, 64);
    memset(page + 160, 0, 16);
    memset(page + 8000, 0, 64);
    CHECK(xts_decrypt(0x123456789, 3 * XTS_UNIT, out, sizeof out) == 0 && memcmp(out, page, sizeof out) == 0);
    CHECK(xts_start((const unsigned char[64]){0}) != NULL);
}

static void check_all(int fd)
{
    struct stat st;
    CHECK(fstat(fd, &st) == 0 && st.st_size == (off_t)model_length);
    memset(scratch, 0xEE, sizeof scratch);
    CHECK(pread(fd, scratch, sizeof scratch, 0) == (ssize_t)model_length && memcmp(scratch, model, model_length) == 0);
}

static void model_write(size_t offset, size_t length)
{
    if (length > 0 && offset + length > model_length)
        model_length = offset + length;
    memcpy(model + offset, scratch, length);
}

static void model_truncate(size_t to)
{
    if (to < model_length)
        memset(model + to, 0, model_length - to);
    model_length = to;
}

static size_t some_length(void)
{
    static const unsigned sizes[] = {1, 15, 16, 17, 100, 512, 4096, 8192, 8193, 30000, 140000};
    unsigned n = draw(3) == 0 ? sizes[draw(sizeof sizes / sizeof *sizes)] : draw(3000);
    return draw(4) == 0 ? n & ~15u : n;
}

/* One step on the file and on the model. */
static void step(int fd)
{
    size_t offset = draw(3) == 0 ? draw(20) * 8192u : draw(3) == 0 ? model_length : draw((unsigned)model_length + 300);
    size_t length = some_length();
    if (draw(3) == 0)
        offset &= ~(size_t)15;
    if (offset + length > MODEL_MAX)
        return;
    struct iovec vector[3] = {{scratch, length / 3}, {scratch + length / 3, length / 3}, {scratch + length / 3 * 2, length - length / 3 * 2}};
    switch (draw(12)) {
    case 0:
    case 1:
        fill(scratch, length);
        CHECK(pwrite(fd, scratch, length, (off_t)offset) == (ssize_t)length);
        model_write(offset, length);
        break;
    case 2:
        fill(scratch, length);
        CHECK(pwritev(fd, vector, 3, (off_t)offset) == (ssize_t)length);
        model_write(offset, length);
        break;
    case 3:
        fill(scratch, length);
        CHECK(lseek(fd, (off_t)offset, SEEK_SET) == (off_t)offset && write(fd, scratch, length) == (ssize_t)length);
        CHECK(lseek(fd, 0, SEEK_CUR) == (off_t)(offset + length));
        model_write(offset, length);
        break;
    case 4:
        CHECK(ftruncate(fd, (off_t)offset) == 0);
        model_truncate(offset);
        break;
    case 5:
        if (length == 0)
            break;
        CHECK(posix_fallocate(fd, (off_t)offset, (off_t)length) == 0);
        if (offset + length > model_length)
            model_truncate(offset + length);
        break;
    case 6: {
        size_t left = offset < model_length ? model_length - offset : 0;
        ssize_t expected = (ssize_t)(length < left ? length : left);
        CHECK(preadv(fd, vector, 3, (off_t)offset) == expected && memcmp(scratch, model + offset, (size_t)expected) == 0);
        break;
    }
    default: {
        size_t left = offset < model_length ? model_length - offset : 0;
        ssize_t expected = (ssize_t)(length < left ? length : left);
        memset(scratch, 0xEE, length + 1);
        if (draw(2) == 0)
            CHECK(pread(fd, scratch, length, (off_t)offset) == expected);
        else
            CHECK(lseek(fd, (off_t)offset, SEEK_SET) >= 0 && read(fd, scratch, length) == expected &&
                  lseek(fd, 0, SEEK_CUR) == (off_t)offset + expected);
        CHECK(memcmp(scratch, model + offset, (size_t)expected) == 0);
        for (size_t i = (size_t)expected; i <= length; i++)
            CHECK(scratch[i] == 0xEE);
        break;
    }
    }
}

static void against_the_model(const char *path, int rounds)
{
    for (int round = 0; round < rounds; round++) {
        int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
        CHECK(fd >= 0 && fd_table_inode(fd) != 0);
        memset(model, 0, sizeof model);
        model_length = 0;
        for (int i = 0; i < 120; i++) {
            step(fd);
            if (i % 10 == 0)
                check_all(fd);
        }
        check_all(fd);
        close(fd);
    }
}

/* Every offset and length around the edges of blocks and of the end, exhaustively. */
static void edges(void)
{
    int fd = open("edges", O_RDWR | O_CREAT, 0600);
    for (size_t size = 0; size <= 50; size += 5)
        for (size_t offset = 0; offset <= 52; offset += 3)
            for (size_t length = 0; length <= 50; length += 1 + length / 20) {
                CHECK(ftruncate(fd, 0) == 0);
                memset(model, 0, 200);
                model_length = 0;
                fill(scratch, size);
                CHECK(pwrite(fd, scratch, size, 0) == (ssize_t)size);
                model_write(0, size);
                fill(scratch, length);
                CHECK(pwrite(fd, scratch, length, (off_t)offset) == (ssize_t)length);
                model_write(offset, length);
                check_all(fd);
                CHECK(ftruncate(fd, (off_t)offset) == 0);
                model_truncate(offset);
                check_all(fd);
                CHECK(ftruncate(fd, (off_t)size + 40) == 0);
                model_truncate(size + 40);
                check_all(fd);
            }
    close(fd);
}

static bool on_disk(const char *path, const char *marker)
{
    int fd = real.open(path, O_RDONLY);
    CHECK(fd >= 0);
    ssize_t n = real.pread(fd, scratch, sizeof scratch, 0);
    real.close(fd);
    return n > 0 && memmem(scratch, (size_t)n, marker, strlen(marker)) != NULL;
}

static void appending(void)
{
    int a = open("log", O_WRONLY | O_CREAT | O_APPEND, 0600), b = open("log", O_WRONLY | O_APPEND);
    CHECK(write(a, "one,", 4) == 4 && write(b, "two,", 4) == 4 && lseek(a, 0, SEEK_SET) == 0 && write(a, "three in a longer line,", 23) == 23);
    int fd = open("log", O_RDONLY);
    CHECK(read(fd, scratch, 100) == 31 && memcmp(scratch, "one,two,three in a longer line,", 31) == 0 && !on_disk("log", "three"));
    close(a);
    close(b);
    close(fd);
}

static void names_and_copies(void)
{
    int fd = open("pg_wal/first", O_RDWR | O_CREAT, 0600);
    memset(scratch, 'm', 100000);
    memcpy(scratch + 777, "MARKER-IN-THE-FILE", 18);
    CHECK(pwrite(fd, scratch, 99999, 0) == 99999);
    CHECK(!on_disk("pg_wal/first", "MARKER-IN-THE-FILE") && !on_disk("pg_wal/first", "mmmm"));
    CHECK(rename("pg_wal/first", "pg_wal/second") == 0 && link("pg_wal/second", "pg_wal/third") == 0);
    int third = open("pg_wal/third", O_RDONLY);
    CHECK(pread(third, scratch, 18, 777) == 18 && memcmp(scratch, "MARKER-IN-THE-FILE", 18) == 0);
    /* Into another file below the directory and out of it. */
    int copy = open("copy", O_RDWR | O_CREAT, 0600), outside = open("../outside", O_RDWR | O_CREAT, 0600);
    CHECK(fd_table_inode(outside) == 0 && fd_table_inode(copy) != 0);
    off_t at = 0;
    while (at < 99999)
        CHECK(copy_file_range(third, &at, copy, NULL, 99999 - (size_t)at, 0) > 0);
    CHECK(pread(copy, scratch, 18, 777) == 18 && memcmp(scratch, "MARKER-IN-THE-FILE", 18) == 0 && !on_disk("copy", "MARKER-IN-THE-FILE"));
    for (ssize_t n; (n = sendfile(outside, copy, NULL, 99999)) != 0;)
        CHECK(n > 0 || lseek(copy, 0, SEEK_SET) == 0);
    CHECK(lseek(copy, 0, SEEK_SET) == 0);
    for (ssize_t n; (n = sendfile(outside, copy, NULL, 99999)) != 0;)
        CHECK(n > 0);
    CHECK(on_disk("../outside", "MARKER-IN-THE-FILE"));
    CHECK(rename("copy", "../copy") == -1 && errno == EXDEV && rename("../outside", "outside") == -1 && errno == EXDEV);
    CHECK(truncate("copy", 780) == 0 && pread(copy, scratch, 18, 777) == 3 && memcmp(scratch, "MAR", 3) == 0);
    int twin = dup(copy);
    CHECK(close(copy) == 0 && pread(twin, scratch, 3, 777) == 3 && memcmp(scratch, "MAR", 3) == 0);
    /* The number of a closed file may come back as anything. */
    CHECK(close(twin) == 0);
    int ends[2];
    CHECK(pipe(ends) == 0 && write(ends[1], "plain", 5) == 5 && read(ends[0], scratch, 5) == 5 && memcmp(scratch, "plain", 5) == 0);
    int pid = open("postmaster.pid", O_RDWR | O_CREAT, 0600);
    CHECK(write(pid, "plain", 5) == 5 && on_disk("postmaster.pid", "plain"));
    CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == -1 && errno == EOPNOTSUPP);
}

static void streams(void)
{
    FILE *f = fopen("stream", "w");
    CHECK(f != NULL && fileno(f) >= 0 && fd_table_inode(fileno(f)) != 0);
    for (int i = 0; i < 5000; i++)
        CHECK(fprintf(f, "line %d of the stream\n", i) > 0);
    CHECK(fclose(f) == 0 && !on_disk("stream", "of the stream"));
    f = fopen("stream", "r");
    char line[64], expected[64];
    struct stat st;
    CHECK(f != NULL && fstat(fileno(f), &st) == 0 && S_ISREG(st.st_mode));
    for (int i = 0; i < 5000; i++) {
        snprintf(expected, sizeof expected, "line %d of the stream\n", i);
        CHECK(fgets(line, sizeof line, f) != NULL && strcmp(line, expected) == 0);
    }
    CHECK(fgets(line, sizeof line, f) == NULL && feof(f) && ftell(f) == st.st_size);
    CHECK(fseek(f, 7, SEEK_SET) == 0 && fgets(line, sizeof line, f) != NULL && strcmp(line, "of the stream\n") == 0);
    CHECK(fclose(f) == 0);
    f = fopen("stream", "a");
    CHECK(f != NULL && fputs("the end", f) >= 0 && fclose(f) == 0);
    f = fopen("stream", "r+");
    CHECK(f != NULL && fseek(f, -7, SEEK_END) == 0 && fread(line, 1, 7, f) == 7 && memcmp(line, "the end", 7) == 0);
    CHECK(fseek(f, 0, SEEK_SET) == 0 && fputs("LINE", f) >= 0 && fflush(f) == 0 && ftruncate(fileno(f), 6) == 0 && fclose(f) == 0);
    f = fopen("stream", "rb");
    CHECK(f != NULL && fread(line, 1, 64, f) == 6 && memcmp(line, "LINE 0", 6) == 0 && fclose(f) == 0);
    CHECK(fopen("absent", "r") == NULL && errno == ENOENT && fopen("stream", "wx") == NULL && errno == EEXIST);
    f = fopen("../plain-stream", "w");
    CHECK(f != NULL && fputs("plain text", f) >= 0 && fclose(f) == 0 && on_disk("../plain-stream", "plain text"));
    int fd = open("stream", O_RDONLY);
    f = fdopen(fd, "r");
    CHECK(f != NULL && fileno(f) == fd && fread(line, 1, 64, f) == 6 && fclose(f) == 0 && fd_table_inode(fd) == 0);
}

/* A full disk in the middle of a write: whole blocks count, the file ends with one. */
static void short_writes(void)
{
    struct rlimit old, limit;
    signal(SIGXFSZ, SIG_IGN);
    int fd = open("short", O_RDWR | O_CREAT, 0600);
    CHECK(getrlimit(RLIMIT_FSIZE, &old) == 0);
    limit = old;
    limit.rlim_cur = 20007;
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    fill(model, 40000);
    CHECK(pwrite(fd, model, 32768, 0) == 20000 && lseek(fd, 0, SEEK_END) == 20000);
    CHECK(pwrite(fd, model + 20000, 3000, 20000) == -1);
    CHECK(pwrite(fd, model + 20000, 5, 20000) == 5 && lseek(fd, 0, SEEK_END) == 20005);
    CHECK(setrlimit(RLIMIT_FSIZE, &old) == 0);
    CHECK(pread(fd, scratch, 30000, 0) == 20005 && memcmp(scratch, model, 20005) == 0);
    close(fd);
}

/* Processes append and fill in records of odd lengths that share blocks with each other's, as pg_stat_statements does; readers look meanwhile. */
#define RECORDS 400
#define RECORD 37

static void neighbours(void)
{
    _Atomic uint32_t *next = shared_memory(4096);
    _Atomic uint32_t *finished = next + 1;
    pid_t children[5];
    for (int c = 0; c < 5; c++) {
        children[c] = fork();
        if (children[c] != 0)
            continue;
        int fd = open("pg_stat_tmp/texts", O_RDWR | O_CREAT, 0600);
        unsigned char record[RECORD], got[RECORD];
        for (uint32_t i; c < 4 && (i = atomic_fetch_add(next, 1)) < RECORDS;) {
            memset(record, (int)(i % 251) + 1, RECORD);
            CHECK(pwrite(fd, record, RECORD, (off_t)i * RECORD) == RECORD);
            CHECK(pread(fd, got, RECORD, (off_t)i * RECORD) == RECORD && memcmp(got, record, RECORD) == 0);
            atomic_fetch_add(finished, 1);
        }
        while (c == 4 && atomic_load(finished) < RECORDS) { /* each byte is there or not yet */
            static unsigned char all[RECORDS * RECORD];
            ssize_t n = pread(fd, all, sizeof all, 0);
            for (ssize_t i = 0; i < n; i++)
                CHECK(all[i] == 0 || all[i] == i / RECORD % 251 + 1);
        }
        exit(0);
    }
    for (int c = 0; c < 5; c++) {
        int status;
        CHECK(waitpid(children[c], &status, 0) == children[c] && status == 0);
    }
    int fd = open("pg_stat_tmp/texts", O_RDONLY);
    CHECK(pread(fd, scratch, sizeof scratch, 0) == RECORDS * RECORD);
    for (uint32_t i = 0; i < RECORDS * RECORD; i++)
        CHECK(scratch[i] == i / RECORD % 251 + 1);
    close(fd);
}

/* WAL: the page is written again and again, a little longer each time, while others read up to what was flushed. */
static void growing_wal(void)
{
    _Atomic uint64_t *flushed = shared_memory(4096);
    int fd = open("pg_wal/000000010000000000000001", O_RDWR | O_CREAT, 0600);
    CHECK(ftruncate(fd, 64 * BLCKSZ) == 0);
    pid_t readers[2];
    for (int r = 0; r < 2; r++) {
        readers[r] = fork();
        if (readers[r] != 0)
            continue;
        int mine = open("pg_wal/000000010000000000000001", O_RDONLY);
        for (uint64_t end = 0; end < 8 * BLCKSZ;) {
            end = atomic_load(flushed);
            uint64_t from = end > 64 ? end - 64 : 0;
            unsigned char got[64];
            CHECK(r == 1 || pread(mine, got, end - from, (off_t)from) == (ssize_t)(end - from));
            if (r == 1) { /* by the page, as logical decoding does */
                static unsigned char page[BLCKSZ];
                uint64_t start = end == 0 ? 0 : (end - 1) / BLCKSZ * BLCKSZ;
                CHECK(pread(mine, page, BLCKSZ, (off_t)start) == BLCKSZ);
                from = from < start ? start : from;
                memcpy(got, page + (from - start), end - from);
            }
            for (uint64_t at = from; at < end; at++)
                CHECK(got[at - from] == (unsigned char)(at / 8 + 1));
        }
        exit(0);
    }
    static unsigned char pages[8 * BLCKSZ];
    for (uint64_t at = 0; at < sizeof pages;) {
        for (uint64_t end = at + 24 < sizeof pages ? at + 24 : sizeof pages; at < end; at++)
            pages[at] = (unsigned char)(at / 8 + 1);
        off_t page = (off_t)((at - 1) / BLCKSZ * BLCKSZ);
        if (page > 0 && at - (uint64_t)page < 24)
            page -= BLCKSZ;
        CHECK(pwrite(fd, pages + page, (size_t)((at + BLCKSZ - 1) / BLCKSZ * BLCKSZ - (uint64_t)page), page) > 0);
        atomic_store(flushed, at);
    }
    for (int r = 0; r < 2; r++) {
        int status;
        CHECK(waitpid(readers[r], &status, 0) == readers[r] && status == 0);
    }
    close(fd);
}

/* A program that Postgres executes has no key: nothing opens, and nothing is destroyed. */
static void without_key(void)
{
    int fd = open("locked", O_RDWR | O_CREAT, 0600);
    CHECK(write(fd, "keep", 4) == 4 && close(fd) == 0);
    crypt_set_mode(CRYPT_LOCKED);
    CHECK(open("locked", O_RDONLY) == -1 && errno == EACCES && open("locked", O_WRONLY | O_TRUNC) == -1 && errno == EACCES);
    CHECK(open("new", O_RDWR | O_CREAT, 0600) == -1 && errno == EACCES && fopen("locked", "r") == NULL && errno == EACCES);
    int directory = open(".", O_RDONLY | O_DIRECTORY);
    CHECK(directory >= 0 && close(directory) == 0);
    CHECK((fd = open("../free", O_RDWR | O_CREAT, 0600)) >= 0 && write(fd, "x", 1) == 1 && close(fd) == 0);
    crypt_set_mode(CRYPT_ON);
    fd = open("locked", O_RDONLY);
    CHECK(read(fd, scratch, 10) == 4 && memcmp(scratch, "keep", 4) == 0);
}

/* VAES and libcrypto give the same bytes, for every offset, length and place of zeros. */
static void both_ways(int rounds)
{
    static unsigned char plain[4 * XTS_UNIT], one[sizeof plain], other[sizeof plain];
    if (!xts_use_vaes(true)) {
        printf("crypt: this processor has no VAES; only libcrypto is tested\n");
        return;
    }
    for (int i = 0; i < rounds * 20; i++) {
        size_t length = XTS_BLOCK * (1 + (size_t)rand_r(&seed) % (i % 2 == 0 ? 40 : sizeof plain / XTS_BLOCK));
        off_t offset = (off_t)XTS_BLOCK * (rand_r(&seed) % 100000);
        uint64_t inode = (uint64_t)rand_r(&seed) << 31 | (unsigned)rand_r(&seed);
        fill(plain, length);
        xts_use_vaes(false);
        CHECK(xts_encrypt(inode, offset, plain, one, length) == 0);
        xts_use_vaes(true);
        CHECK(xts_encrypt(inode, offset, plain, other, length) == 0 && memcmp(one, other, length) == 0);
        for (int z = rand_r(&seed) % 4; z > 0; z--)
            memset(one + XTS_BLOCK * ((size_t)rand_r(&seed) % (length / XTS_BLOCK)), 0, z == 1 ? 8 : XTS_BLOCK);
        memcpy(other, one, length);
        CHECK(xts_decrypt(inode, offset, other, length) == 0);
        xts_use_vaes(false);
        CHECK(xts_decrypt(inode, offset, one, length) == 0 && memcmp(one, other, length) == 0);
        unsigned char tail[XTS_BLOCK - 1], again[sizeof tail];
        memcpy(tail, plain, sizeof tail), memcpy(again, plain, sizeof tail);
        CHECK(xts_tail(inode, offset, tail, sizeof tail) == 0);
        xts_use_vaes(true);
        CHECK(xts_tail(inode, offset, again, sizeof again) == 0 && memcmp(tail, again, sizeof tail) == 0);
    }
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? 4 : 40;
    (void)argv;
    seed = (unsigned)now_ms();
    printf("crypt: seed %u\n", seed);
    fflush(stdout); /* children would print it again */
    known_answers(true);
    begin();
    both_ways(rounds);
    known_answers(false);
    against_the_model("libcrypto", rounds / 4);
    edges();
    xts_use_vaes(true);
    against_the_model("file", rounds);
    against_the_model("pg_wal/file", rounds);
    edges();
    appending();
    names_and_copies();
    streams();
    short_writes();
    neighbours();
    growing_wal();
    without_key();
    remove_shim();
    return 0;
}
