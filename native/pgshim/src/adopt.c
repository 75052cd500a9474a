/* Adoption: finding what the map does not track.
 *
 * Invariants
 * - Nothing is adopted that was found while the gate was open but is not so any more: name, entry and length are looked at again with the gate closed, when no
 *   write, truncation, unlinking or renaming is under way.
 * - A name that has a dropped entry stays local for good; so do unlogged relations, other forks and temporary relations.
 * - Only whole blocks are adopted, and only where there are enough of them: sequences have one. */
#define _GNU_SOURCE
#include "adopt.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "added.h"
#include "libc.h"
#include "segment_path.h"
#include "util.h"

#define FORK_MAIN 0
#define FORK_INIT 3
/* Blocks beyond those that are tracked that make it worth while. */
#define FOUND_BLOCKS_MIN 16u
/* At most so many files at once: the gate is closed meanwhile. The next round takes the next ones. */
#define FOUND_MAX 256u

static struct segment_name found[FOUND_MAX];
static uint32_t found_count;

static void path_of(const struct segment_name *name, char *to, size_t size)
{
    struct map_entry entry = {.spc = name->spc, .db = name->db, .rel = name->rel, .fork = name->fork, .segno = name->segno};
    char relative[160];
    *to = '\0';
    if (segment_format(&entry, relative, sizeof relative) > 0)
        snprintf(to, size, "%s/%s", segment_path_datadir(), relative);
}

/* Whole blocks of the file, as many as are tracked at most; 0: there is none. */
static uint32_t blocks_of(const struct segment_name *name)
{
    char path[PATH_MAX + 192];
    struct stat st;
    path_of(name, path, sizeof path);
    if (*path == '\0' || real.lstat(path, &st) != 0 || !S_ISREG(st.st_mode))
        return 0;
    return st.st_size / BLCKSZ < (off_t)AREA_BLOCKS ? (uint32_t)(st.st_size / BLCKSZ) : AREA_BLOCKS;
}

static bool is_unlogged(const struct segment_name *name)
{
    struct segment_name init = {name->spc, name->db, name->rel, FORK_INIT, 0};
    return map_find(&init) >= 0 || blocks_of(&init) > 0;
}

bool adopt_is_unlogged(const struct map_entry *entry)
{
    return entry->source_fork != entry->fork || is_unlogged(&(struct segment_name){entry->spc, entry->db, entry->rel, FORK_MAIN, 0});
}

/* Blocks there are beyond those that are tracked; 0 when it is not to be adopted. */
static uint32_t untracked(const struct segment_name *name, uint32_t blocks)
{
    int32_t index = map_find(name);
    struct map_entry *entry = index < 0 ? NULL : &map_entries[index];
    if (entry != NULL && (map_is_dropped(entry) || (atomic_load(&entry->flags) & ENTRY_LAID) == 0))
        return 0;
    uint32_t tracked = entry == NULL ? 0 : map_nblocks(entry);
    return blocks > tracked ? blocks - tracked : 0;
}

/* `relative`: of the directory, below the data directory. */
static void look_in(const char *relative)
{
    char path[PATH_MAX + 192];
    snprintf(path, sizeof path, "%s/%s", segment_path_datadir(), relative);
    DIR *directory = real.opendir(path);
    if (directory == NULL)
        return;
    for (struct dirent *file; found_count < FOUND_MAX && (file = readdir(directory)) != NULL;) {
        struct segment_name name;
        snprintf(path, sizeof path, "%s/%s", relative, file->d_name);
        if (segment_parse(path, &name) && name.fork == FORK_MAIN && untracked(&name, blocks_of(&name)) >= FOUND_BLOCKS_MIN && !is_unlogged(&name))
            found[found_count++] = name;
    }
    closedir(directory);
}

/* Every directory of a database below `relative`, `depth` levels further down. */
static void look_below(const char *relative, int depth)
{
    char path[PATH_MAX + 192];
    if (depth == 0) {
        look_in(relative);
        return;
    }
    snprintf(path, sizeof path, "%s/%s", segment_path_datadir(), relative);
    DIR *directory = real.opendir(path);
    if (directory == NULL)
        return;
    for (struct dirent *below; found_count < FOUND_MAX && (below = readdir(directory)) != NULL;)
        if (below->d_name[0] != '.') {
            int length = snprintf(path, sizeof path, "%s/%s", relative, below->d_name);
            if (length > 0 && (size_t)length < sizeof path)
                look_below(path, depth - 1);
        }
    closedir(directory);
}

void adopt_look(void)
{
    found_count = 0;
    look_below("base", 1);
    look_below("global", 0);
    look_below("pg_tblspc", 3); /* OID, version, database */
}

void adopt_found(void)
{
    static bool said;
    for (uint32_t i = 0; i < found_count; i++) {
        uint32_t blocks = blocks_of(&found[i]);
        int32_t index = map_find(&found[i]);
        if (untracked(&found[i], blocks) == 0)
            continue;
        bool room = index < 0 ? added_adopt(&found[i], blocks) : added_grow(&map_entries[index], blocks);
        if (!room && !said) {
            said = true;
            shim_log("no room in the resident map for more new files: their pages stay on the local disk until the next start");
        }
    }
    found_count = 0;
}
