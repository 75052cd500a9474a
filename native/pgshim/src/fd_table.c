/* Which entry of the resident map an open file descriptor belongs to. */
#include "fd_table.h"

_Atomic int32_t fd_entries[FD_TABLE_SIZE];
