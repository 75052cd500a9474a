/* What is known of an open file descriptor. */
#include "fd_table.h"

_Atomic int32_t fd_entries[FD_TABLE_SIZE];
_Atomic uint64_t fd_inodes[FD_TABLE_SIZE];
_Atomic uint8_t fd_flags[FD_TABLE_SIZE];
