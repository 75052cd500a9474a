/* How the key of this boot gets into the process. */
#ifndef PGSHIM_SCRATCH_KEY_H
#define PGSHIM_SCRATCH_KEY_H

#include <stdbool.h>

/* From the environment: the key, the test switch for plaintext, or neither. A postmaster without either, or with a key that cannot be used,
 * ends here with a reason. */
void scratch_key_start(bool postmaster);

#endif
