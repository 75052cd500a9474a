/* AES-256-XTS of scratch files.
 *
 * Invariants
 * - A unit is encrypted under (inode, unit number); a block under its unit's tweak and its place in it, never depending on another block.
 * - Contexts are per thread and keyed once: a call only sets the tweak. A forked child goes on with its copy.
 * - Where the processor can do it faster (xts_vaes.c) libcrypto is loaded and keyed all the same: a machine without it is told at the start. */
#define _GNU_SOURCE
#include "xts.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#include "crypto_library.h"
#include "util.h"
#include "xts_vaes.h"

#define UNIT_BLOCKS (XTS_UNIT / XTS_BLOCK)
#define TAIL_TWEAK ((uint64_t)1 << 63)

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tweaks are little-endian");

struct block {
    uint64_t low;
    uint64_t high;
};

struct contexts {
    void *encrypt;
    void *decrypt;
    void *block_encrypt; /* single blocks under the data key */
    void *block_decrypt;
    void *tweak; /* single blocks under the tweak key */
};

static _Alignas(4096) unsigned char key[XTS_KEY_BYTES];
static _Thread_local struct contexts contexts;
static bool vaes;

static void *new_context(const void *cipher, const unsigned char *with, bool encrypt)
{
    void *context = crypto.EVP_CIPHER_CTX_new();
    if (context == NULL)
        return NULL;
    int worked = encrypt ? crypto.EVP_EncryptInit_ex(context, cipher, NULL, with, NULL)
                         : crypto.EVP_DecryptInit_ex(context, cipher, NULL, with, NULL);
    if (worked == 1 && crypto.EVP_CIPHER_CTX_set_padding(context, 0) == 1)
        return context;
    crypto.EVP_CIPHER_CTX_free(context);
    return NULL;
}

static void free_contexts(struct contexts *c)
{
    void *all[] = {c->encrypt, c->decrypt, c->block_encrypt, c->block_decrypt, c->tweak};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i] != NULL)
            crypto.EVP_CIPHER_CTX_free(all[i]);
    *c = (struct contexts){0};
}

static pthread_key_t at_thread_exit;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void free_of_thread(void *ended)
{
    free_contexts(ended);
}

static void prepare_exits(void)
{
    pthread_key_create(&at_thread_exit, free_of_thread);
}

static bool make_contexts(void)
{
    pthread_once(&once, prepare_exits);
    struct contexts c = {
        .encrypt = new_context(crypto.EVP_aes_256_xts(), key, true),
        .decrypt = new_context(crypto.EVP_aes_256_xts(), key, false),
        .block_encrypt = new_context(crypto.EVP_aes_256_ecb(), key, true),
        .block_decrypt = new_context(crypto.EVP_aes_256_ecb(), key, false),
        .tweak = new_context(crypto.EVP_aes_256_ecb(), key + 32, true),
    };
    if (c.encrypt == NULL || c.decrypt == NULL || c.block_encrypt == NULL || c.block_decrypt == NULL || c.tweak == NULL) {
        free_contexts(&c);
        return false;
    }
    contexts = c;
    pthread_setspecific(at_thread_exit, &contexts);
    return true;
}

static bool ready(void)
{
    return likely(contexts.tweak != NULL) || make_contexts();
}

const char *xts_start(const unsigned char given[XTS_KEY_BYTES])
{
    const char *wrong = crypto_library_load();
    if (wrong != NULL)
        return wrong;
    /* XTS is no cipher with two equal keys, and a key of zeros is a pipe that was never filled. */
    if (memcmp(given, given + 32, 32) == 0)
        return "the halves of the key are the same";
    free_contexts(&contexts);
    memcpy(key, given, sizeof key);
    vaes = xts_vaes_possible();
    if (vaes)
        xts_vaes_start(key);
    return make_contexts() ? NULL : "libcrypto does not set up AES-256-XTS";
}

bool xts_use_vaes(bool use)
{
    return vaes = use && xts_vaes_possible();
}

/* Whole blocks from the start of a unit. */
static bool whole(bool encrypt, struct block tweak, const unsigned char *from, unsigned char *to, size_t length)
{
    int n = 0;
    const unsigned char *iv = (const unsigned char *)&tweak;
    if (encrypt)
        return crypto.EVP_EncryptInit_ex(contexts.encrypt, NULL, NULL, NULL, iv) == 1 &&
               crypto.EVP_EncryptUpdate(contexts.encrypt, to, &n, from, (int)length) == 1 && n == (int)length;
    return crypto.EVP_DecryptInit_ex(contexts.decrypt, NULL, NULL, NULL, iv) == 1 &&
           crypto.EVP_DecryptUpdate(contexts.decrypt, to, &n, from, (int)length) == 1 && n == (int)length;
}

/* Times x in GF(2^128), as XTS counts bits. */
static struct block doubled(struct block t)
{
    return (struct block){t.low << 1 ^ (t.high >> 63) * 0x87, t.high << 1 | t.low >> 63};
}

static void mask(struct block t, const unsigned char *from, unsigned char *to, size_t length)
{
    for (size_t at = 0; at < length; at += XTS_BLOCK, t = doubled(t)) {
        struct block b;
        memcpy(&b, from + at, sizeof b);
        b.low ^= t.low;
        b.high ^= t.high;
        memcpy(to + at, &b, sizeof b);
    }
}

/* Blocks from `first` on in a unit: libcrypto only starts at 0, so this is XTS written out. */
static bool part(bool encrypt, struct block tweak, size_t first, const unsigned char *from, unsigned char *to, size_t length)
{
    struct block t;
    int n = 0;
    if (crypto.EVP_EncryptUpdate(contexts.tweak, (unsigned char *)&t, &n, (const unsigned char *)&tweak, sizeof t) != 1 || n != sizeof t)
        return false;
    for (size_t i = 0; i < first; i++)
        t = doubled(t);
    mask(t, from, to, length);
    int worked = encrypt ? crypto.EVP_EncryptUpdate(contexts.block_encrypt, to, &n, to, (int)length)
                         : crypto.EVP_DecryptUpdate(contexts.block_decrypt, to, &n, to, (int)length);
    mask(t, to, to, length);
    return worked == 1 && n == (int)length;
}

/* One unit or a part of one. */
static bool in_unit(bool encrypt, uint64_t inode, off_t offset, const unsigned char *from, unsigned char *to, size_t length)
{
    struct block tweak = {inode, (uint64_t)offset / XTS_UNIT};
    size_t first = (uint64_t)offset % XTS_UNIT / XTS_BLOCK;
    if (likely(vaes)) {
        if (encrypt)
            xts_vaes_encrypt(tweak.low, tweak.high, first, from, to, length);
        else
            xts_vaes_decrypt(tweak.low, tweak.high, first, from, to, length);
        return true;
    }
    return first == 0 ? whole(encrypt, tweak, from, to, length) : part(encrypt, tweak, first, from, to, length);
}

static size_t length_in_unit(off_t offset, size_t length)
{
    size_t left = XTS_UNIT - (uint64_t)offset % XTS_UNIT;
    return length < left ? length : left;
}

int xts_encrypt(uint64_t inode, off_t offset, const void *from, void *to, size_t length)
{
    if (unlikely(!vaes) && !ready())
        return EIO;
    for (size_t at = 0; at < length;) {
        size_t n = length_in_unit(offset + (off_t)at, length - at);
        if (!in_unit(true, inode, offset + (off_t)at, (const unsigned char *)from + at, (unsigned char *)to + at, n))
            return EIO;
        at += n;
    }
    return 0;
}

/* True when a block may be zeros: some aligned word is, which of ciphertext is so once in two million pages. In vectors that every machine of
 * the architecture has: this runs over every page read. */
static bool may_hold_zeros(const unsigned char *bytes, size_t length)
{
    typedef uint32_t words __attribute__((vector_size(XTS_BLOCK)));
    words any = {0};
    for (size_t at = 0; at < length; at += XTS_BLOCK) {
        words w;
        memcpy(&w, bytes + at, sizeof w);
        any |= (words)(w == 0);
    }
    struct block b;
    memcpy(&b, &any, sizeof b);
    return (b.low | b.high) != 0;
}

static bool decrypt_around_zeros(uint64_t inode, off_t offset, unsigned char *bytes, size_t length)
{
    bool zero[UNIT_BLOCKS];
    size_t blocks = length / XTS_BLOCK, zeros = 0;
    for (size_t i = 0; i < blocks; i++) {
        struct block b;
        memcpy(&b, bytes + i * XTS_BLOCK, sizeof b);
        zero[i] = (b.low | b.high) == 0;
        zeros += zero[i];
    }
    if (zeros == blocks)
        return true;
    if (!in_unit(false, inode, offset, bytes, bytes, length))
        return false;
    for (size_t i = 0; zeros > 0 && i < blocks; i++)
        if (zero[i])
            memset(bytes + i * XTS_BLOCK, 0, XTS_BLOCK);
    return true;
}

int xts_decrypt(uint64_t inode, off_t offset, void *bytes, size_t length)
{
    if (unlikely(!vaes) && !ready())
        return EIO;
    for (size_t at = 0; at < length;) {
        size_t n = length_in_unit(offset + (off_t)at, length - at);
        unsigned char *unit = (unsigned char *)bytes + at;
        bool worked = !vaes && unlikely(may_hold_zeros(unit, n)) ? decrypt_around_zeros(inode, offset + (off_t)at, unit, n)
                                                        : in_unit(false, inode, offset + (off_t)at, unit, unit, n);
        if (!worked)
            return EIO;
        at += n;
    }
    return 0;
}

int xts_tail(uint64_t inode, off_t offset, void *bytes, size_t length)
{
    unsigned char stream[XTS_BLOCK] = {0};
    if (!ready() || !whole(true, (struct block){inode, (uint64_t)offset / XTS_BLOCK | TAIL_TWEAK}, stream, stream, sizeof stream))
        return EIO;
    for (size_t i = 0; i < length; i++)
        ((unsigned char *)bytes)[i] ^= stream[i];
    return 0;
}
