/* From a path as Postgres writes it to an entry of the resident map, and back. Postgres runs in its data directory and mostly uses
 * relative paths: `base/5/16384`, `./base/5/16384` in a base backup, absolute ones before it changes directory. */
#define _GNU_SOURCE
#include "segment_path.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "libc.h"

#define DEFAULT_TABLESPACE 1663
#define GLOBAL_TABLESPACE 1664

static const char *const fork_suffixes[] = {"", "_fsm", "_vm", "_init"};
#define FORKS 4

#define VERSION_DIRECTORY_MAX 64

static char version_directory[VERSION_DIRECTORY_MAX]; /* in user tablespaces; empty: none is served */
static char given_datadir[PATH_MAX];    /* as the agent wrote it */
static char resolved_datadir[PATH_MAX]; /* without symbolic links */
static _Atomic bool cwd_is_datadir;     /* once seen; Postgres never leaves it */

static const char *parse_number(const char *at, uint32_t max, uint32_t *value)
{
    if (*at < '0' || *at > '9' || (*at == '0' && at[1] >= '0' && at[1] <= '9'))
        return NULL;
    uint64_t n = 0;
    for (; *at >= '0' && *at <= '9'; at++) {
        n = n * 10 + (uint64_t)(*at - '0');
        if (n > max)
            return NULL;
    }
    *value = (uint32_t)n;
    return at;
}

/* `pg_tblspc/16400/PG_18_202506291/5`: up to behind the database; NULL when it is not such a path. */
static const char *parse_user_tablespace(const char *at, uint32_t *spc, uint32_t *db)
{
    size_t length = strlen(version_directory);
    if (length == 0 || strncmp(at, "pg_tblspc/", 10) != 0)
        return NULL;
    at = parse_number(at + 10, UINT32_MAX, spc);
    if (at == NULL || *at++ != '/' || strncmp(at, version_directory, length) != 0 || at[length] != '/')
        return NULL;
    return parse_number(at + length + 1, UINT32_MAX, db);
}

bool segment_parse(const char *at, struct segment_name *name)
{
    if (strncmp(at, "base/", 5) == 0) {
        name->spc = DEFAULT_TABLESPACE;
        at = parse_number(at + 5, UINT32_MAX, &name->db);
        if (at == NULL || *at++ != '/')
            return false;
    } else if (strncmp(at, "pg_tblspc/", 10) == 0) {
        at = parse_user_tablespace(at, &name->spc, &name->db);
        if (at == NULL || *at++ != '/')
            return false;
    } else if (strncmp(at, "global/", 7) == 0) {
        name->spc = GLOBAL_TABLESPACE;
        name->db = 0;
        at += 7;
    } else {
        return false;
    }
    at = parse_number(at, UINT32_MAX, &name->rel);
    if (at == NULL)
        return false;
    name->fork = 0;
    for (uint8_t fork = 1; fork < FORKS; fork++) {
        size_t length = strlen(fork_suffixes[fork]);
        if (strncmp(at, fork_suffixes[fork], length) == 0) {
            name->fork = fork;
            at += length;
            break;
        }
    }
    uint32_t segno = 0;
    if (*at == '.') {
        at = parse_number(at + 1, UINT16_MAX, &segno);
        if (at == NULL || segno == 0)
            return false;
    }
    name->segno = (uint16_t)segno;
    return *at == '\0';
}

size_t segment_format(const struct map_entry *entry, char *to, size_t size)
{
    bool own = entry->spc != DEFAULT_TABLESPACE && entry->spc != GLOBAL_TABLESPACE;
    if (entry->fork >= FORKS || (own && version_directory[0] == '\0'))
        return 0;
    const char *suffix = fork_suffixes[entry->fork];
    char segment[8] = "";
    if (entry->segno != 0)
        snprintf(segment, sizeof segment, ".%u", entry->segno);
    int n;
    if (own)
        n = snprintf(to, size, "pg_tblspc/%u/%s/%u/%u%s%s", entry->spc, version_directory, entry->db, entry->rel, suffix, segment);
    else if (entry->spc == GLOBAL_TABLESPACE)
        n = snprintf(to, size, "global/%u%s%s", entry->rel, suffix, segment);
    else
        n = snprintf(to, size, "base/%u/%u%s%s", entry->db, entry->rel, suffix, segment);
    return n > 0 && (size_t)n < size ? (size_t)n : 0;
}

bool segment_path_tablespaces(const char *directory)
{
    size_t length = directory == NULL ? 0 : strlen(directory);
    if (length >= sizeof version_directory || (length > 0 && strchr(directory, '/') != NULL))
        return false;
    memcpy(version_directory, length == 0 ? "" : directory, length + 1);
    return true;
}

/* First entry of a directory that starts with `prefix` (of a digit when it is empty). */
static bool first_entry(const char *path, const char *prefix, char *to, size_t size)
{
    DIR *directory = real.opendir(path);
    bool found = false;
    for (struct dirent *entry; directory != NULL && !found && (entry = readdir(directory)) != NULL;) {
        bool fits = *prefix == '\0' ? *entry->d_name >= '0' && *entry->d_name <= '9' : strncmp(entry->d_name, prefix, strlen(prefix)) == 0;
        if (fits && strlen(entry->d_name) < size) {
            strcpy(to, entry->d_name);
            found = true;
        }
    }
    if (directory != NULL)
        closedir(directory);
    return found;
}

static void find_version_directory(void)
{
    char path[PATH_MAX + 96];
    char name[VERSION_DIRECTORY_MAX];
    int saved = errno;
    segment_path_tablespaces(NULL);
    snprintf(path, sizeof path, "%s/pg_tblspc", resolved_datadir);
    if (first_entry(path, "", name, sizeof name)) {
        size_t length = strlen(path);
        snprintf(path + length, sizeof path - length, "/%s", name);
        if (first_entry(path, "PG_", name, sizeof name))
            segment_path_tablespaces(name);
    }
    errno = saved;
}

bool segment_path_start(const char *datadir)
{
    cwd_is_datadir = false;
    size_t length = strlen(datadir);
    while (length > 1 && datadir[length - 1] == '/')
        length--;
    if (length >= sizeof given_datadir || datadir[0] != '/')
        return false;
    memcpy(given_datadir, datadir, length);
    given_datadir[length] = '\0';
    if (realpath(given_datadir, resolved_datadir) == NULL)
        return false;
    find_version_directory();
    return true;
}

static const char *below(const char *path, const char *directory)
{
    size_t length = strlen(directory);
    return strncmp(path, directory, length) == 0 && path[length] == '/' ? path + length + 1 : NULL;
}

static bool in_datadir(void)
{
    if (cwd_is_datadir)
        return true;
    int saved = errno;
    char cwd[PATH_MAX];
    bool is = getcwd(cwd, sizeof cwd) != NULL && strcmp(cwd, resolved_datadir) == 0;
    errno = saved;
    if (is)
        cwd_is_datadir = true;
    return is;
}

const char *segment_path_datadir(void)
{
    return resolved_datadir;
}

/* `path` relative to the data directory, as far as its text tells; NULL: it is elsewhere. */
static const char *relative_to_datadir(const char *path)
{
    if (path[0] == '/') {
        const char *relative = below(path, given_datadir);
        path = relative != NULL ? relative : below(path, resolved_datadir);
        if (path == NULL)
            return NULL;
    }
    for (;;) {
        while (*path == '/')
            path++;
        if (path[0] != '.' || path[1] != '/')
            break;
        path += 2;
    }
    return path[0] == '.' && path[1] == '.' && (path[2] == '/' || path[2] == '\0') ? NULL : path;
}

const char *segment_path_below(const char *path)
{
    if (resolved_datadir[0] == '\0' || path == NULL || *path == '\0')
        return NULL;
    const char *relative = relative_to_datadir(path);
    return relative != NULL && (path[0] == '/' || in_datadir()) ? relative : NULL;
}

bool segment_path_directory(const char *path, uint32_t *spc, uint32_t *db)
{
    if (map == NULL || path == NULL)
        return false;
    const char *at = relative_to_datadir(path);
    if (at == NULL)
        return false;
    if (strncmp(at, "base/", 5) == 0) {
        *spc = DEFAULT_TABLESPACE;
        at = parse_number(at + 5, UINT32_MAX, db);
    } else if (strncmp(at, "global", 6) == 0) {
        *spc = GLOBAL_TABLESPACE;
        *db = 0;
        at += 6;
    } else {
        at = parse_user_tablespace(at, spc, db);
    }
    while (at != NULL && *at == '/')
        at++;
    return at != NULL && *at == '\0' && (path[0] == '/' || in_datadir());
}

bool segment_path_name(const char *path, struct segment_name *name)
{
    if (map == NULL || path == NULL)
        return false;
    const char *relative = relative_to_datadir(path);
    return relative != NULL && segment_parse(relative, name) && (path[0] == '/' || in_datadir());
}

int32_t segment_path_entry(const char *path)
{
    struct segment_name name;
    return segment_path_name(path, &name) ? map_find(&name) : -1;
}
