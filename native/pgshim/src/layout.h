/* Laying out the sparse segment files. */
#ifndef PGSHIM_LAYOUT_H
#define PGSHIM_LAYOUT_H

/* Creates every file of the map under `datadir` that is missing, at its full length; ends the process when it cannot. */
void layout_create(const char *datadir);

#endif
