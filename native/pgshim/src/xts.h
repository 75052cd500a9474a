/* The cipher of scratch files: bytes in, bytes out, nothing of files but an inode number and an offset. Format: docs/formats/scratch-encryption.md. */
#ifndef PGSHIM_XTS_H
#define PGSHIM_XTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define XTS_KEY_BYTES 64u
#define XTS_UNIT 8192u
#define XTS_BLOCK 16u

/* NULL, or why the cipher cannot work (static text). Copies the key. */
const char *xts_start(const unsigned char key[XTS_KEY_BYTES]);

/* For tests: which of two ways with the same result. False when this processor has only the one of libcrypto. */
bool xts_use_vaes(bool use);

/* Whole blocks: offset and length are multiples of 16. `from` may be `to`. 0, or an errno. */
int xts_encrypt(uint64_t inode, off_t offset, const void *from, void *to, size_t length);
/* In place; ciphertext blocks of zeros become zeros. */
int xts_decrypt(uint64_t inode, off_t offset, void *bytes, size_t length);
/* The last length < 16 bytes of a file, at a multiple of 16; its own inverse. */
int xts_tail(uint64_t inode, off_t offset, void *bytes, size_t length);

#endif
