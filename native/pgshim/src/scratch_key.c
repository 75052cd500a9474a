/* The key of this boot: 64 bytes from the descriptor whose number LAKEBASE_SHIM_KEY_FD is, read to the end, closed, forgotten. */
#define _GNU_SOURCE
#include "scratch_key.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "crypt.h"
#include "libc.h"
#include "util.h"
#include "xts.h"

/* The agent writes the key right after it spawned us. */
#define KEY_WAIT_MS 10000

static void read_key(int fd, unsigned char key[XTS_KEY_BYTES])
{
    size_t got = 0;
    int64_t deadline = now_ms() + KEY_WAIT_MS;
    while (got < XTS_KEY_BYTES) {
        struct pollfd waited = {.fd = fd, .events = POLLIN};
        int64_t left = deadline - now_ms();
        if (left <= 0)
            shim_die("the agent did not send the scratch key");
        if (poll(&waited, 1, (int)left) <= 0)
            continue;
        ssize_t n = real.read(fd, key + got, XTS_KEY_BYTES - got);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n <= 0)
            shim_die("the scratch key ends after %zu of %u bytes", got, XTS_KEY_BYTES);
        got += (size_t)n;
    }
}

void scratch_key_start(bool postmaster)
{
    unsigned char key[XTS_KEY_BYTES];
    const char *number = getenv("LAKEBASE_SHIM_KEY_FD");
    if (number != NULL) {
        int fd = (int)strtol(number, NULL, 10);
        read_key(fd, key);
        real.close(fd);
        unsetenv("LAKEBASE_SHIM_KEY_FD");
        const char *wrong = xts_start(key);
        explicit_bzero(key, sizeof key);
        if (wrong != NULL)
            shim_die("scratch cannot be encrypted: %s", wrong);
        crypt_set_mode(CRYPT_ON);
    } else if (getenv("LAKEBASE_SHIM_PLAINTEXT") != NULL) {
        if (postmaster)
            shim_log("LAKEBASE_SHIM_PLAINTEXT is set: scratch is NOT encrypted; this is for tests only");
        crypt_set_mode(CRYPT_OFF);
    } else if (postmaster) {
        shim_die("no scratch key: LAKEBASE_SHIM_KEY_FD is not set");
    } else {
        crypt_set_mode(CRYPT_LOCKED);
    }
}
