/* Finds libcrypto: the one that is in the process already, if Postgres was built with TLS, else the system's. Symbols are taken from the
 * handle, and the library is loaded locally, so nothing Postgres links to can be replaced by it. */
#define _GNU_SOURCE
#include "crypto_library.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct crypto_calls crypto;

/* OPENSSL_INIT_NO_ATEXIT: its exit handler would take the ciphers away from a stream that stdio flushes even later. */
#define INIT_NO_ATEXIT ((uint64_t)0x00080000)

static const char *const names[] = {"libcrypto.so.3", "libcrypto.so.1.1", "libcrypto.so"};
#define NAMES (sizeof names / sizeof *names)

#define RESOLVE(name)                                      \
    do {                                                   \
        *(void **)&crypto.name = dlsym(handle, #name);     \
        found = found && crypto.name != NULL;              \
    } while (0)

static bool take(void *handle)
{
    bool found = true;
    RESOLVE(EVP_CIPHER_CTX_new);
    RESOLVE(EVP_CIPHER_CTX_free);
    RESOLVE(EVP_CIPHER_CTX_set_padding);
    RESOLVE(EVP_aes_256_xts);
    RESOLVE(EVP_aes_256_ecb);
    RESOLVE(EVP_EncryptInit_ex);
    RESOLVE(EVP_DecryptInit_ex);
    RESOLVE(EVP_EncryptUpdate);
    RESOLVE(EVP_DecryptUpdate);
    int (*init)(uint64_t, const void *);
    *(void **)&init = dlsym(handle, "OPENSSL_init_crypto");
    return found && init != NULL && init(INIT_NO_ATEXIT, NULL) == 1;
}

const char *crypto_library_load(void)
{
    static const int flags[] = {RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD, RTLD_NOW | RTLD_LOCAL};
    if (crypto.EVP_DecryptUpdate != NULL)
        return NULL;
    bool any = false;
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < NAMES; i++) {
            void *handle = dlopen(names[i], flags[pass]);
            if (handle == NULL)
                continue;
            any = true;
            if (take(handle))
                return NULL;
            dlclose(handle);
        }
    crypto = (struct crypto_calls){0};
    return any ? "libcrypto has no AES-256-XTS" : "no libcrypto (libcrypto.so.3 or libcrypto.so.1.1) can be loaded";
}
