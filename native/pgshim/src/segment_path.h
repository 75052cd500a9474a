/* From a path as Postgres writes it to an entry of the resident map, and back. */
#ifndef PGSHIM_SEGMENT_PATH_H
#define PGSHIM_SEGMENT_PATH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "resident_map.h"

/* `base/5/16384_vm.1`, `global/1262` or `pg_tblspc/16400/PG_18_202506291/5/16384`; false for everything else (temporary relations included). */
bool segment_parse(const char *relative, struct segment_name *name);
/* The inverse; the length, or 0 when the entry is in a tablespace we do not serve or the buffer is too small. */
size_t segment_format(const struct map_entry *entry, char *to, size_t size);

/* Sets the data directory that absolute paths are measured against; false: no such directory. The name of the version's directory in user
 * tablespaces (`PG_18_202506291`) is taken from those that are there: a map with entries in one comes with its directory. */
bool segment_path_start(const char *datadir);
/* That name by itself, for tests; NULL: files there are not served. False: no such name. */
bool segment_path_tablespaces(const char *directory);
const char *segment_path_datadir(void);
/* `path` relative to the data directory, or NULL: it names something elsewhere. Goes by the text alone. */
const char *segment_path_below(const char *path);
/* `base/5` or `global`: the directory's tablespace and database; false for other directories. */
bool segment_path_directory(const char *path, uint32_t *spc, uint32_t *db);
/* The segment that `path` names; false when it names none. Relative paths count only while the working directory is the data directory. */
bool segment_path_name(const char *path, struct segment_name *name);
/* Index of the entry that `path` names, or -1. Relative paths count only while the working directory is the data directory. */
int32_t segment_path_entry(const char *path);

#endif
