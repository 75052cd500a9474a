/* Visibility: everything is hidden except the libc names we interpose. */
#ifndef PGSHIM_EXPORT_H
#define PGSHIM_EXPORT_H

#define EXPORT __attribute__((visibility("default")))
/* The second name of a function defined in the same file. */
#define EXPORT_ALIAS(name, other) extern __typeof(name) other __attribute__((alias(#name), visibility("default")))

#endif
