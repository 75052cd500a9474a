/* Small helpers: the log line, the clock, the signal guard, whole reads and writes. */
#ifndef PGSHIM_UTIL_H
#define PGSHIM_UTIL_H

#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define BLCKSZ 8192

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* One line to stderr, which is Postgres's log. Keeps errno. */
void shim_log(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* A start that cannot be right must not go on: sparse files without a map would read as zeros. */
void shim_die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

int64_t now_ms(void);

/* Holds back every signal while we own a busy block or the agent connection: a handler of Postgres may leave by longjmp or _exit,
 * and the block would stay busy for everybody. */
void signals_hold(sigset_t *saved);
void signals_release(const sigset_t *saved);

/* 0, or an errno: all of the bytes, or an error. Encrypts where the file is. */
int pwrite_all(int fd, const void *bytes, size_t length, off_t offset);

#endif
