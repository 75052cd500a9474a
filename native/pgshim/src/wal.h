/* Writes into WAL segments: how far they are, and how long they have to take when storage cannot follow. */
#ifndef PGSHIM_WAL_H
#define PGSHIM_WAL_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* What the fd table keeps of a WAL segment: -1 - its number, so always negative; 0: the path names none. */
int32_t wal_mark(const char *path);

/* A pwrite into the segment of that mark; may be short, which Postgres's WAL writers expect. */
ssize_t wal_pwrite(int fd, int32_t mark, const void *from, size_t length, off_t offset);

#endif
