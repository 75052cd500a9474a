/* Small helpers: the log line, the clock, the signal guard, whole writes. */
#define _GNU_SOURCE
#include "util.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "crypt.h"
#include "libc.h"

static void log_line(const char *format, va_list arguments)
{
    char line[512];
    int prefix = snprintf(line, sizeof line, "pgshim[%d]: ", (int)getpid());
    int body = vsnprintf(line + prefix, sizeof line - (size_t)prefix - 1, format, arguments);
    size_t length = (size_t)prefix + (size_t)(body < 0 ? 0 : body);
    if (length > sizeof line - 2)
        length = sizeof line - 2;
    line[length++] = '\n';
    ssize_t ignored = real.write(STDERR_FILENO, line, length);
    (void)ignored;
}

void shim_log(const char *format, ...)
{
    int saved = errno;
    libc_resolve();
    va_list arguments;
    va_start(arguments, format);
    log_line(format, arguments);
    va_end(arguments);
    errno = saved;
}

void shim_die(const char *format, ...)
{
    libc_resolve();
    va_list arguments;
    va_start(arguments, format);
    log_line(format, arguments);
    va_end(arguments);
    _exit(1);
}

int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

void signals_hold(sigset_t *saved)
{
    sigset_t all;
    sigfillset(&all);
    /* A fault of ours in here must still end the process with its own signal. */
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGFPE);
    sigdelset(&all, SIGILL);
    sigdelset(&all, SIGABRT);
    pthread_sigmask(SIG_SETMASK, &all, saved);
}

void signals_release(const sigset_t *saved)
{
    pthread_sigmask(SIG_SETMASK, saved, NULL);
}

int pwrite_all(int fd, const void *bytes, size_t length, off_t offset)
{
    const char *from = bytes;
    while (length > 0) {
        ssize_t n = crypt_pwrite(fd, from, length, offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? errno : ENOSPC;
        from += n;
        offset += n;
        length -= (size_t)n;
    }
    return 0;
}
