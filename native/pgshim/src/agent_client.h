/* The connection of this process to the agent: one request in flight, answered in order. Messages: docs/protocols/shim-agent.md. */
#ifndef PGSHIM_AGENT_CLIENT_H
#define PGSHIM_AGENT_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#define FETCH_BLOCKS_MAX 128u

/* Seconds of an unreachable agent before a read fails; an agent that accepts but does not answer gets twice as long. */
bool agent_client_start(const char *socket_path, unsigned retry_seconds);

/* Requests of this process give way to those of backends. */
extern bool agent_background;

/* Fetches blocks [first, first + count) of an entry into `to`; 0 or an errno. Signals must be held and only one thread may be in here. */
int agent_fetch(uint32_t entry, uint32_t first, uint32_t count, void *to);

/* In a forked child: the connection is the parent's; forget it. */
void agent_client_after_fork(void);

#endif
