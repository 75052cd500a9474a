/* AES-256-XTS with VAES and AVX-512.
 *
 * Invariants
 * - The bytes are those of xts.c's other way, for every offset and length: the tests compare them.
 * - Round keys lie on pages of their own beside no other data; nothing of the data stays in memory here, only in registers. */
#define _GNU_SOURCE
#include "xts_vaes.h"

#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 9)

#include <immintrin.h>
#include <string.h>

#define ROUNDS 14
#define WIDE 8 /* vectors in flight: hides the latency of a round */
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,aes,pclmul,sse4.1")))
#define INLINE TARGET static inline __attribute__((always_inline))

struct schedule {
    __m128i encrypt[ROUNDS + 1];
    __m128i decrypt[ROUNDS + 1];
    __m128i tweak[ROUNDS + 1];
};

static _Alignas(4096) union {
    struct schedule keys;
    unsigned char page[4096];
} secret;

bool xts_vaes_possible(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("vaes") && __builtin_cpu_supports("vpclmulqdq") &&
           __builtin_cpu_supports("aes") && __builtin_cpu_supports("pclmul");
}

/* Key expansion (FIPS 197) */

INLINE __m128i spread(__m128i k)
{
    k = _mm_xor_si128(k, _mm_slli_si128(k, 4));
    k = _mm_xor_si128(k, _mm_slli_si128(k, 4));
    return _mm_xor_si128(k, _mm_slli_si128(k, 4));
}

#define EVEN(i, constant) \
    k[i] = _mm_xor_si128(spread(k[(i) - 2]), _mm_shuffle_epi32(_mm_aeskeygenassist_si128(k[(i) - 1], constant), 0xff))
#define ODD(i) k[i] = _mm_xor_si128(spread(k[(i) - 2]), _mm_shuffle_epi32(_mm_aeskeygenassist_si128(k[(i) - 1], 0), 0xaa))

TARGET static void expand(const unsigned char key[32], __m128i k[ROUNDS + 1])
{
    k[0] = _mm_loadu_si128((const __m128i *)key);
    k[1] = _mm_loadu_si128((const __m128i *)(key + 16));
    EVEN(2, 0x01);
    ODD(3);
    EVEN(4, 0x02);
    ODD(5);
    EVEN(6, 0x04);
    ODD(7);
    EVEN(8, 0x08);
    ODD(9);
    EVEN(10, 0x10);
    ODD(11);
    EVEN(12, 0x20);
    ODD(13);
    EVEN(14, 0x40);
}

TARGET void xts_vaes_start(const unsigned char key[XTS_KEY_BYTES])
{
    struct schedule *s = &secret.keys;
    expand(key, s->encrypt);
    expand(key + 32, s->tweak);
    s->decrypt[0] = s->encrypt[ROUNDS];
    for (int i = 1; i < ROUNDS; i++)
        s->decrypt[i] = _mm_aesimc_si128(s->encrypt[ROUNDS - i]);
    s->decrypt[ROUNDS] = s->encrypt[0];
}

/* Tweaks */

struct number {
    uint64_t low;
    uint64_t high;
};

/* Times x in GF(2^128), as XTS counts bits. */
static struct number doubled(struct number t)
{
    return (struct number){t.low << 1 ^ (t.high >> 63) * 0x87, t.high << 1 | t.low >> 63};
}

/* Of the first WIDE vectors. */
TARGET static void first_tweaks(uint64_t low, uint64_t high, size_t first, __m512i out[WIDE])
{
    __m128i b = _mm_xor_si128(_mm_set_epi64x((long long)high, (long long)low), secret.keys.tweak[0]);
    for (int i = 1; i < ROUNDS; i++)
        b = _mm_aesenc_si128(b, secret.keys.tweak[i]);
    b = _mm_aesenclast_si128(b, secret.keys.tweak[ROUNDS]);
    struct number t = {(uint64_t)_mm_cvtsi128_si64(b), (uint64_t)_mm_extract_epi64(b, 1)};
    for (size_t i = 0; i < first; i++)
        t = doubled(t);
    struct number each[4 * WIDE];
    for (int i = 0; i < 4 * WIDE; i++, t = doubled(t))
        each[i] = t;
    for (int i = 0; i < WIDE; i++)
        out[i] = _mm512_loadu_si512(&each[4 * i]);
}

/* Times x^32: 4 * WIDE blocks on. */
INLINE __m512i later(__m512i t)
{
    const __m512i reduce = _mm512_set1_epi64(0x87);
    return _mm512_xor_si512(_mm512_bslli_epi128(t, 4), _mm512_clmulepi64_epi128(_mm512_bsrli_epi128(t, 12), reduce, 0));
}
_Static_assert(WIDE == 8, "later() goes on by 32 blocks");

/* Data */

INLINE void load_keys(const __m128i from[ROUNDS + 1], __m512i k[ROUNDS + 1])
{
    for (int i = 0; i <= ROUNDS; i++)
        k[i] = _mm512_broadcast_i32x4(from[i]);
}

INLINE __m512i one(bool encrypt, const __m512i k[ROUNDS + 1], __m512i tweak, __m512i data)
{
    __m512i x = _mm512_xor_si512(_mm512_xor_si512(data, tweak), k[0]);
    for (int i = 1; i < ROUNDS; i++)
        x = encrypt ? _mm512_aesenc_epi128(x, k[i]) : _mm512_aesdec_epi128(x, k[i]);
    x = encrypt ? _mm512_aesenclast_epi128(x, k[ROUNDS]) : _mm512_aesdeclast_epi128(x, k[ROUNDS]);
    return _mm512_xor_si512(x, tweak);
}

/* `plain` where the block of `data` is not zeros, else zeros. */
INLINE __m512i unless_zeros(__m512i data, __m512i plain)
{
    unsigned words = _mm512_test_epi64_mask(data, data);
    if (__builtin_expect(words == 0xff, 1))
        return plain;
    words |= (words & 0x55) << 1 | (words & 0xaa) >> 1;
    return _mm512_maskz_mov_epi64((__mmask8)words, plain);
}

INLINE void run(bool encrypt, const __m128i keys[ROUNDS + 1], __m512i tweak[WIDE], const unsigned char *from, unsigned char *to, size_t length)
{
    __m512i k[ROUNDS + 1];
    load_keys(keys, k);
    for (; length >= 64 * WIDE; length -= 64 * WIDE, from += 64 * WIDE, to += 64 * WIDE) {
        __m512i x[WIDE];
#pragma GCC unroll 8
        for (int v = 0; v < WIDE; v++)
            x[v] = _mm512_xor_si512(_mm512_xor_si512(_mm512_loadu_si512(from + 64 * v), tweak[v]), k[0]);
#pragma GCC unroll 16
        for (int i = 1; i < ROUNDS; i++)
#pragma GCC unroll 8
            for (int v = 0; v < WIDE; v++)
                x[v] = encrypt ? _mm512_aesenc_epi128(x[v], k[i]) : _mm512_aesdec_epi128(x[v], k[i]);
#pragma GCC unroll 8
        for (int v = 0; v < WIDE; v++) {
            x[v] = encrypt ? _mm512_aesenclast_epi128(x[v], k[ROUNDS]) : _mm512_aesdeclast_epi128(x[v], k[ROUNDS]);
            x[v] = _mm512_xor_si512(x[v], tweak[v]);
            if (!encrypt)
                x[v] = unless_zeros(_mm512_loadu_si512(from + 64 * v), x[v]);
            _mm512_storeu_si512(to + 64 * v, x[v]);
            tweak[v] = later(tweak[v]);
        }
    }
    for (int v = 0; length > 0; v++) {
        size_t n = length < 64 ? length : 64;
        __mmask8 words = (__mmask8)((1u << (n / 8)) - 1);
        __m512i data = _mm512_maskz_loadu_epi64(words, from);
        __m512i x = one(encrypt, k, tweak[v], data);
        _mm512_mask_storeu_epi64(to, words, encrypt ? x : unless_zeros(data, x));
        length -= n, from += n, to += n;
    }
}

TARGET void xts_vaes_encrypt(uint64_t low, uint64_t high, size_t first, const unsigned char *from, unsigned char *to, size_t length)
{
    __m512i tweak[WIDE];
    first_tweaks(low, high, first, tweak);
    run(true, secret.keys.encrypt, tweak, from, to, length);
}

TARGET void xts_vaes_decrypt(uint64_t low, uint64_t high, size_t first, const unsigned char *from, unsigned char *to, size_t length)
{
    __m512i tweak[WIDE];
    first_tweaks(low, high, first, tweak);
    run(false, secret.keys.decrypt, tweak, from, to, length);
}

#else

bool xts_vaes_possible(void)
{
    return false;
}
void xts_vaes_start(const unsigned char key[XTS_KEY_BYTES])
{
    (void)key;
}
void xts_vaes_encrypt(uint64_t low, uint64_t high, size_t first, const unsigned char *from, unsigned char *to, size_t length)
{
    (void)low, (void)high, (void)first, (void)from, (void)to, (void)length;
}
void xts_vaes_decrypt(uint64_t low, uint64_t high, size_t first, const unsigned char *from, unsigned char *to, size_t length)
{
    (void)low, (void)high, (void)first, (void)from, (void)to, (void)length;
}

#endif
