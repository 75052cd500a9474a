/* Lazy layout: files appear when their names are used, whole, once. */
#include "harness.h"

#include <dirent.h>

#include "libc.h"

#define N 50u
static struct segment segments[2 * N];

static bool on_disk(const char *path)
{
    return real.access(path, F_OK) == 0;
}

static int listed(const char *path)
{
    DIR *directory = opendir(path);
    CHECK(directory != NULL);
    int n = 0;
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;)
        n += entry->d_name[0] != '.';
    closedir(directory);
    return n;
}

static void begin(const char *mode)
{
    for (uint32_t i = 0; i < 2 * N; i++)
        segments[i] = (struct segment){{i < N ? 1663u : 1664u, i < N ? 5u : 0u, i, 0, 0}, i};
    layout_mode = mode;
    start_shim(segments, 2 * N);
}

static void names_in_use(void)
{
    struct stat st;
    begin("lazy");
    CHECK(!on_disk("base/5/7") && !on_disk("global/60"));
    int fd = open("base/5/7", O_RDWR);
    CHECK(fd >= 0 && fstat(fd, &st) == 0 && st.st_size == 7 * BLCKSZ && on_disk("base/5/7") && !on_disk("base/5/8"));
    CHECK(stat("./base/5/8", &st) == 0 && st.st_size == 8 * BLCKSZ && lstat("global/60", &st) == 0 && st.st_size == 60 * BLCKSZ);
    CHECK(access("base/5/9", R_OK) == 0 && on_disk("base/5/9"));
    CHECK(open("base/5/10", O_RDWR | O_CREAT | O_EXCL, 0600) == -1 && errno == EEXIST && !map_is_dropped(&map_entries[10]));
    CHECK(unlink("base/5/11") == 0 && !on_disk("base/5/11") && unlink("base/5/11") == -1 && errno == ENOENT);
    CHECK(stat("base/5/11", &st) == -1 && errno == ENOENT && open("base/5/11", O_RDWR) == -1 && errno == ENOENT);
    fd = open("base/5/11", O_RDWR | O_CREAT | O_EXCL, 0600);
    CHECK(fd >= 0 && fstat(fd, &st) == 0 && st.st_size == 0);
    CHECK(truncate("base/5/12", 3 * BLCKSZ) == 0 && stat("base/5/12", &st) == 0 && st.st_size == 3 * BLCKSZ);
    /* A file the agent laid down is kept. */
    fd = real.open("base/5/20", O_CREAT | O_RDWR, 0600);
    CHECK(fd >= 0 && real.write(fd, "boot", 4) == 4 && stat("base/5/20", &st) == 0 && st.st_size == 20 * BLCKSZ);
    char four[4];
    CHECK(real.pread(fd, four, 4, 0) == 4 && memcmp(four, "boot", 4) == 0);
    remove_shim();
}

static void listings(void)
{
    begin("lazy");
    CHECK(listed("base/5") == 0); /* as the postmaster sees it */
    pid_t child = fork();
    if (child == 0) {
        CHECK(unlink("base/5/3") == 0 && listed("base") == 1 && listed("./base/5/") == N - 1 && !on_disk("global/60"));
        char absolute[100];
        snprintf(absolute, sizeof absolute, "%s/data/global", base_directory);
        CHECK(listed(absolute) == N);
        exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    remove_shim();
    begin("1");
    CHECK(listed("base/5") == N && listed("global") == N);
    remove_shim();
}

/* All at once, with removals among them: nobody sees a short file, nothing stays behind that was removed. */
static void races(void)
{
    begin("lazy");
    pid_t children[6];
    for (int c = 0; c < 6; c++) {
        children[c] = fork();
        if (children[c] == 0) {
            for (uint32_t i = 0; i < N; i++) {
                char path[32];
                struct stat st;
                snprintf(path, sizeof path, "base/5/%u", i);
                if (c == 5 && i % 5 == 0)
                    CHECK(unlink(path) == 0 || errno == ENOENT);
                else if (stat(path, &st) == 0)
                    CHECK(st.st_size == (off_t)i * BLCKSZ);
                else
                    CHECK(errno == ENOENT && i % 5 == 0);
            }
            exit(0);
        }
    }
    for (int c = 0; c < 6; c++) {
        int status;
        CHECK(waitpid(children[c], &status, 0) == children[c] && status == 0);
    }
    for (uint32_t i = 0; i < N; i++) {
        char path[32];
        snprintf(path, sizeof path, "base/5/%u", i);
        CHECK(on_disk(path) == (i % 5 != 0) && !(atomic_load(&map_entries[i].flags) & ENTRY_LAYING));
    }
    remove_shim();
}

static void no_directory(void)
{
    begin("lazy");
    CHECK(real.rename("global", "elsewhere") == 0);
    CHECK(open("global/60", O_RDONLY) == -1 && errno == ENOENT && real.rename("elsewhere", "global") == 0);
    CHECK(open("global/60", O_RDONLY) >= 0);
    remove_shim();
}

int main(void)
{
    names_in_use();
    listings();
    races();
    no_directory();
    return 0;
}
