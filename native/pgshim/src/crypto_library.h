/* The few functions of libcrypto we use, found at run time: no headers, no link. Works with OpenSSL 1.1 and 3. */
#ifndef PGSHIM_CRYPTO_LIBRARY_H
#define PGSHIM_CRYPTO_LIBRARY_H

struct crypto_calls {
    void *(*EVP_CIPHER_CTX_new)(void);
    void (*EVP_CIPHER_CTX_free)(void *);
    int (*EVP_CIPHER_CTX_set_padding)(void *, int);
    const void *(*EVP_aes_256_xts)(void);
    const void *(*EVP_aes_256_ecb)(void);
    int (*EVP_EncryptInit_ex)(void *, const void *, void *, const unsigned char *, const unsigned char *);
    int (*EVP_DecryptInit_ex)(void *, const void *, void *, const unsigned char *, const unsigned char *);
    int (*EVP_EncryptUpdate)(void *, unsigned char *, int *, const unsigned char *, int);
    int (*EVP_DecryptUpdate)(void *, unsigned char *, int *, const unsigned char *, int);
};

extern struct crypto_calls crypto;

/* NULL, or why there is none (static text). */
const char *crypto_library_load(void);

#endif
