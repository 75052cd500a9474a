/* The gate. Entering is counting oneself, then looking whether it is closed; closing is saying so, then looking at the count. Both sequentially consistent:
 * one of the two sees the other.
 *
 * Invariants
 * - Who is inside may wait for the agent, for blocks, for room; who has it closed waits for nobody, so it is soon open again.
 * - Closing gives up after CLOSE_MS: writers never wait longer for somebody who is inside and does not get on.
 * - A process that died with the gate closed has it opened by the next one that finds it so; what it was at is complete at every step. One that died
 *   inside leaves the gate unclosable: no more rounds, and nothing is lost (a killed backend ends the compute anyway). */
#define _GNU_SOURCE
#include "gate.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "resident_map.h"
#include "util.h"

#define CLOSE_MS 50
#define POLL_NS 20000

static _Thread_local unsigned depth;

/* Opens it for an owner that is no more. */
static void open_for_dead(uint32_t owner)
{
    int saved = errno;
    if (owner != 0 && kill((pid_t)owner, 0) != 0 && errno == ESRCH && atomic_compare_exchange_strong(&map->gate, &owner, 0))
        map_wake(&map->gate);
    errno = saved;
}

static void wait_until_open(void)
{
    for (uint32_t owner; (owner = atomic_load(&map->gate)) != 0;) {
        map_sleep(&map->gate, owner); /* a second at most */
        open_for_dead(atomic_load(&map->gate));
    }
}

void gate_enter(void)
{
    if (map == NULL || depth++ > 0)
        return;
    for (;;) {
        atomic_fetch_add(&map->inside, 1);
        if (likely(atomic_load(&map->gate) == 0))
            return;
        atomic_fetch_sub(&map->inside, 1);
        int saved = errno;
        wait_until_open();
        errno = saved;
    }
}

void gate_leave(void)
{
    if (map != NULL && --depth == 0)
        atomic_fetch_sub(&map->inside, 1);
}

void gate_open(void)
{
    atomic_store(&map->gate, 0);
    map_wake(&map->gate);
}

bool gate_close(void)
{
    uint32_t open = 0;
    open_for_dead(atomic_load(&map->gate));
    if (!atomic_compare_exchange_strong(&map->gate, &open, (uint32_t)getpid()))
        return false;
    for (int64_t deadline = now_ms() + CLOSE_MS; atomic_load(&map->inside) != 0;) {
        if (now_ms() > deadline) {
            gate_open();
            return false;
        }
        nanosleep(&(struct timespec){.tv_nsec = POLL_NS}, NULL);
    }
    return true;
}
