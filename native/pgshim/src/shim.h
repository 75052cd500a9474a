/* Start of the shim in a process. */
#ifndef PGSHIM_SHIM_H
#define PGSHIM_SHIM_H

/* Reads the environment and attaches to the resident map, if there is one. Runs as a constructor; tests call it again. */
void shim_start(void);

#endif
