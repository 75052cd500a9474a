/* The gate: what changes a segment file goes through it; who closes it knows that nothing of the kind is under way, in any process.
 * docs/protocols/shim-agent.md, Rounds. */
#ifndef PGSHIM_GATE_H
#define PGSHIM_GATE_H

#include <stdbool.h>

/* Around everything that writes, truncates, unlinks or renames a segment file, and around the look at the map that belongs to it. May be nested. */
void gate_enter(void);
void gate_leave(void);

/* Waits until nobody is inside, and keeps everybody out; false when somebody stayed inside for too long, or another process has it closed. The caller
 * is not inside, waits for nobody until it opens the gate, and is the only one in its process. */
bool gate_close(void);
void gate_open(void);

#endif
