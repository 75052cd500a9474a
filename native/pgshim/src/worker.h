/* The cache worker: the shim in a process of its own, whose program never gets to its main function. */
#ifndef PGSHIM_WORKER_H
#define PGSHIM_WORKER_H

/* True when LAKEBASE_SHIM_WORKER says that this process is one. */
int worker_wanted(void);
/* Serves until the agent is gone; never returns. */
void worker_run(void) __attribute__((noreturn));

#endif
