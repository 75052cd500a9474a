/* The connection of this process to the agent.
 *
 * Invariants
 * - The socket is non-blocking; all waiting happens in ppoll, which lets SIGQUIT (immediate shutdown) through and nothing else.
 * - After any error in the middle of an answer the connection is closed: the next request starts on a fresh one, so an answer can never
 *   be taken for another's.
 * - The descriptor is close-on-exec and numbered above those Postgres counts as its own (max_files_per_process). */
#define _GNU_SOURCE
#include "agent_client.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "libc.h"
#include "resident_map.h"
#include "util.h"

#define REQUEST_MAGIC 0x4C425251u
#define ANSWER_MAGIC 0x4C425253u
#define REQUEST_BACKGROUND 1u
#define RECONNECT_PAUSE_MS 50
#define DESCRIPTOR_FLOOR 4096

struct request {
    uint32_t magic;
    uint32_t entry;
    uint32_t first;
    uint16_t count;
    uint16_t flags;
    uint64_t id;
    uint64_t reserved;
};
_Static_assert(sizeof(struct request) == 32, "request layout");

struct answer {
    uint32_t magic;
    uint32_t error;
    uint64_t id;
    uint32_t count;
    uint32_t reserved;
};
_Static_assert(sizeof(struct answer) == 24, "answer layout");

bool agent_background;
static struct sockaddr_un agent_address;
static unsigned retry_ms;
static int connection = -1;
static uint64_t last_id;

bool agent_client_start(const char *socket_path, unsigned retry_seconds)
{
    size_t length = strlen(socket_path);
    if (length >= sizeof agent_address.sun_path)
        return false;
    agent_address = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(agent_address.sun_path, socket_path, length);
    retry_ms = retry_seconds * 1000;
    return true;
}

static void disconnect(void)
{
    if (connection >= 0)
        real.close(connection);
    connection = -1;
}

void agent_client_after_fork(void)
{
    disconnect();
}

/* Waits for `events`, or just for time to pass when fd is -1. */
static void wait_for(int fd, short events, int64_t timeout_ms)
{
    struct pollfd waited = {.fd = fd, .events = events};
    struct timespec timeout = {.tv_sec = timeout_ms / 1000, .tv_nsec = timeout_ms % 1000 * 1000000};
    sigset_t but_quit;
    sigfillset(&but_quit);
    sigdelset(&but_quit, SIGQUIT);
    ppoll(&waited, 1, &timeout, &but_quit);
}

static int move_up(int fd)
{
    struct rlimit limit;
    rlim_t floor = DESCRIPTOR_FLOOR;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < floor + 64)
        floor = limit.rlim_cur > 80 ? limit.rlim_cur - 16 : 3;
    int high = fcntl(fd, F_DUPFD_CLOEXEC, (int)floor);
    if (high < 0)
        return fd;
    real.close(fd);
    return high;
}

static bool connect_once(void)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return false;
    /* EAGAIN here means a full backlog: the caller tries again. */
    if (connect(fd, (struct sockaddr *)&agent_address, sizeof agent_address) != 0) {
        int error = errno;
        real.close(fd);
        errno = error;
        return false;
    }
    connection = move_up(fd);
    return true;
}

static int send_request(const struct request *request)
{
    size_t sent = 0;
    while (sent < sizeof *request) {
        ssize_t n = send(connection, (const char *)request + sent, sizeof *request - sent, MSG_NOSIGNAL);
        if (n > 0)
            sent += (size_t)n;
        else if (errno == EAGAIN)
            wait_for(connection, POLLOUT, 1000);
        else if (errno != EINTR)
            return errno;
    }
    return 0;
}

/* Fills both parts, header first, with as few calls as the answer allows. */
static int receive(void *head, size_t head_length, void *body, size_t body_length, size_t *received, int64_t deadline)
{
    while (*received < head_length + body_length) {
        size_t at = *received;
        struct iovec parts[2];
        int n_parts = 0;
        if (at < head_length)
            parts[n_parts++] = (struct iovec){(char *)head + at, head_length - at};
        size_t body_at = at > head_length ? at - head_length : 0;
        if (body_length > body_at)
            parts[n_parts++] = (struct iovec){(char *)body + body_at, body_length - body_at};
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)n_parts};
        ssize_t n = recvmsg(connection, &message, 0);
        if (n > 0) {
            *received += (size_t)n;
            if (at < head_length && *received >= head_length)
                return 0; /* the caller looks at the header: the body may be shorter than asked */
        } else if (n == 0) {
            return ECONNRESET;
        } else if (errno == EAGAIN) {
            int64_t left = deadline - now_ms();
            if (left <= 0)
                return ETIMEDOUT;
            wait_for(connection, POLLIN, left);
        } else if (errno != EINTR) {
            return errno;
        }
    }
    return 0;
}

/* One request on the open connection. `*failed` is an errno of the connection; otherwise the agent's answer is returned. */
static int exchange(uint32_t entry, uint32_t first, uint32_t count, void *to, int *failed)
{
    struct request request = {REQUEST_MAGIC, entry, first, (uint16_t)count, agent_background ? REQUEST_BACKGROUND : 0, ++last_id, 0};
    struct answer answer;
    size_t received = 0;
    int64_t deadline = now_ms() + 2 * (int64_t)retry_ms;
    if ((*failed = send_request(&request)) != 0)
        return 0;
    if ((*failed = receive(&answer, sizeof answer, to, (size_t)count * BLCKSZ, &received, deadline)) != 0)
        return 0;
    if (answer.magic != ANSWER_MAGIC || answer.id != request.id || answer.count > count ||
        received > sizeof answer + (size_t)answer.count * BLCKSZ) {
        *failed = EPROTO;
        return 0;
    }
    if ((*failed = receive(&answer, sizeof answer, to, (size_t)answer.count * BLCKSZ, &received, deadline)) != 0)
        return 0;
    if (answer.error != 0)
        return answer.error < 4096 ? (int)answer.error : EIO;
    memset((char *)to + (size_t)answer.count * BLCKSZ, 0, (size_t)(count - answer.count) * BLCKSZ);
    return 0;
}

int agent_fetch(uint32_t entry, uint32_t first, uint32_t count, void *to)
{
    int64_t give_up = now_ms() + retry_ms;
    bool said = false;
    for (;;) {
        int failed = 0;
        if (connection >= 0 || connect_once()) {
            int error = exchange(entry, first, count, to, &failed);
            if (failed == 0)
                return error;
            disconnect();
        } else {
            failed = errno;
        }
        if (failed == ETIMEDOUT || now_ms() >= give_up) {
            shim_log("the agent at %s does not answer (%s): the read fails", agent_address.sun_path, strerror(failed));
            return EIO;
        }
        /* A connection the agent closed while it was idle shows up as one failed exchange; only a second failure is news. */
        if (!said && now_ms() > give_up - retry_ms + 1000) {
            shim_log("the agent at %s does not answer (%s); trying for %u s", agent_address.sun_path, strerror(failed), retry_ms / 1000);
            said = true;
        }
        wait_for(-1, 0, RECONNECT_PAUSE_MS);
    }
}
