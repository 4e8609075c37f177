/* Vectors of LANES floats for the compiled CPU kernels: types, elementary functions, and rows of half precision read as float32.
 *
 * Written with the vector extensions of GCC and Clang, so that one source serves SSE, AVX2, AVX-512 and NEON. Every function works lane by
 * lane: a NaN or an infinity never leaves its lane. Nothing here changes rounding modes, and subnormal numbers stay what they are. */

#ifndef LINESCAN_C_VECTOR_H
#define LINESCAN_C_VECTOR_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float vf __attribute__((vector_size(4 * LANES), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * LANES), may_alias));
typedef uint32_t vu __attribute__((vector_size(4 * LANES), may_alias));
typedef uint16_t vh __attribute__((vector_size(2 * LANES), may_alias));
typedef double vd __attribute__((vector_size(8 * LANES), may_alias)); /* lowered to two registers */
typedef int64_t vl __attribute__((vector_size(8 * LANES), may_alias));

enum { FLOAT32, BFLOAT16, FLOAT16 }; /* the order of c_library.TYPES */

static inline vf v_set(float x) { return x - (vf){0}; }
static inline vd v_set_double(double x) { return x - (vd){0}; }
static inline vf v_select(vi where, vf yes, vf no) { return (vf)((where & (vi)yes) | (~where & (vi)no)); }
static inline vd v_select_double(vl where, vd yes, vd no) { return (vd)((where & (vl)yes) | (~where & (vl)no)); }
static inline vf v_max(vf a, vf b) { return v_select(a > b, a, b); } /* b where a is NaN */
static inline vd v_max_double(vd a, vd b) { return v_select_double(a > b, a, b); }
static inline vd v_widen(vf x) { return __builtin_convertvector(x, vd); }
static inline vf v_narrow(vd x) { return __builtin_convertvector(x, vf); }

/* exp(r) for |r| <= ln(2) / 2 (Cephes' minimax polynomial, below 1 unit in the last place). */
static inline vf v_exp_reduced(vf r) {
    vf q = 1.9875691500e-4f * r + 1.3981999507e-3f;
    q = q * r + 8.3334519073e-3f;
    q = q * r + 4.1665795894e-2f;
    q = q * r + 1.6666665459e-1f;
    q = q * r + 5.0000001201e-1f;
    return q * (r * r) + (r + 1.0f);
}

#define ROUND_FLOAT 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer, which is then the low bits of the sum */

/* n = round(x / ln 2), as a float whose low bits are n; r = x - n ln 2, with ln 2 in two parts. */
static inline vi v_exp_split(vf x, vf *r) {
    vf shifted = x * 1.44269504088896341f + ROUND_FLOAT, n = shifted - ROUND_FLOAT;
    *r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    return (vi)shifted - (vi)v_set(ROUND_FLOAT);
}

/* exp(x) for any x: gradual underflow, 0 at -inf, inf above 88.72, NaN at NaN. The power of two is applied in two halves. */
static inline vf v_exp(vf x) {
    vf r;
    x = v_select(x < -104.0f, v_set(-104.0f), x);
    x = v_select(x > 89.0f, v_set(89.0f), x);
    vi n = v_exp_split(x, &r), half = n >> 1;
    return v_exp_reduced(r) * (vf)((half + 127) << 23) * (vf)((n - half + 127) << 23);
}

/* exp(x) for x <= 88; 0 below -87.7, where the result would be subnormal. */
static inline vf v_exp_flush(vf x) {
    vf r;
    x = v_select(x < -88.0f, v_set(-88.0f), x); /* rounds to n = -127, whose power of two has the bits of 0 */
    vi n = v_exp_split(x, &r);
    return v_exp_reduced(r) * (vf)((n + 127) << 23);
}

/* exp(x) for x <= 0 in double precision, to 1e-11; 0 below -708.7. */
static inline vd v_exp_double(vd x) {
    const double shift = 6755399441055744.0; /* 1.5 * 2^52 */
    x = v_select_double(x < -709.0, v_set_double(-709.0), x);
    vd shifted = x * 1.4426950408889634 + shift, n = shifted - shift;
    vd r = (x - n * 6.93145751953125e-1) - n * 1.42860682030941723e-6, q = r * (1.0 / 3628800) + 1.0 / 362880;
    q = q * r + 1.0 / 40320;
    q = q * r + 1.0 / 5040;
    q = q * r + 1.0 / 720;
    q = q * r + 1.0 / 120;
    q = q * r + 1.0 / 24;
    q = q * r + 1.0 / 6;
    q = q * r + 0.5;
    q = q * r + 1.0;
    q = q * r + 1.0;
    return q * (vd)(((vl)shifted - (vl)v_set_double(shift) + 1023) << 52);
}

/* 2^x for x <= 127; 0 below -126.5, where the result would be subnormal. The decays of a scan cost more than all its other arithmetic. */
static inline vf v_exp2_flush(vf x) {
    x = v_select(x < -127.0f, v_set(-127.0f), x); /* 2^-127 has the bits of 0 */
    vf shifted = x + ROUND_FLOAT, r = x - (shifted - ROUND_FLOAT);
    vf q = 1.535334420e-4f * r + 1.339887480e-3f;
    q = q * r + 9.618437430e-3f;
    q = q * r + 5.550332470e-2f;
    q = q * r + 2.402264790e-1f;
    q = q * r + 6.931472030e-1f;
    q = q * r + 1.0f;
    return q * (vf)(((vi)shifted + 127) << 23); /* the other bits of ROUND_FLOAT are shifted out */
}

static inline vf v_sigmoid(vf x) {
    vf e = v_exp(v_select(x < 0.0f, x, -x));
    return v_select(x < 0.0f, e, v_set(1.0f)) / (1.0f + e);
}

/* log(1 + exp(x)); log(1 + e) = 2 atanh(e / (2 + e)) for e = exp(-|x|), so that tiny results keep their digits. */
static inline vf v_softplus(vf x) {
    vf size = v_select(x < 0.0f, -x, x), e = v_exp(-size), s = e / (2.0f + e), q = s * s;
    vf sum = q * (1.0f / 15) + 1.0f / 13;
    sum = sum * q + 1.0f / 11;
    sum = sum * q + 1.0f / 9;
    sum = sum * q + 1.0f / 7;
    sum = sum * q + 1.0f / 5;
    sum = sum * q + 1.0f / 3;
    sum = (sum * q) * s + s;
    return v_select(x > 0.0f, x, v_set(0.0f)) + 2.0f * sum;
}

#if LANES == 16
#define EVEN_LANES 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD_LANES 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#elif LANES == 8
#define EVEN_LANES 0, 2, 4, 6, 8, 10, 12, 14
#define ODD_LANES 1, 3, 5, 7, 9, 11, 13, 15
#else
#define EVEN_LANES 0, 2, 4, 6
#define ODD_LANES 1, 3, 5, 7
#endif

/* Sums of neighbouring lanes, those of a first. */
static inline vf v_add_pairs(vf a, vf b) {
#ifdef __clang__
    return __builtin_shufflevector(a, b, EVEN_LANES) + __builtin_shufflevector(a, b, ODD_LANES);
#else
    return __builtin_shuffle(a, b, (vi){EVEN_LANES}) + __builtin_shuffle(a, b, (vi){ODD_LANES});
#endif
}

/* Lane i of the result is the sum over the lanes of x[i], of LANES vectors. */
static inline vf v_sum_lanes(const vf *x) {
    vf sums[LANES / 2];
    for (int i = 0; i < LANES / 2; i++) sums[i] = v_add_pairs(x[2 * i], x[2 * i + 1]);
    for (int n = LANES / 4; n; n /= 2)
        for (int i = 0; i < n; i++) sums[i] = v_add_pairs(sums[2 * i], sums[2 * i + 1]);
    return sums[0];
}

/* Half types <-> float32. To half: round to nearest, ties to even, as PyTorch does. */
static inline vf v_from_bfloat16(vh x) { return (vf)(__builtin_convertvector(x, vu) << 16); }

static inline vf v_from_float16(vh x) {
    vu bits = __builtin_convertvector(x, vu), size = (bits & 0x7fff) << 13;
    vf scaled = (vf)size * 0x1p112f; /* moves the exponent's bias, subnormal numbers included */
    vu result = (vu)scaled | ((vu)(size >= 0x0f800000) & 0x7f800000); /* infinity and NaN */
    return (vf)(result | (bits & 0x8000) << 16);
}

static inline vh v_to_bfloat16(vf x) {
    vu bits = (vu)x, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, nan = (vu)(x != x);
    return __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded), vh);
}

static inline vh v_to_float16(vf x) {
    vu bits = (vu)x, size = bits & 0x7fffffff;
    vu normal = (size + 0xc8000fff + ((size >> 13) & 1)) >> 13;      /* 0xc8000000 moves the exponent's bias by 15 - 127 */
    vu small = (vu)((vf)size + 0.5f) - 0x3f000000;                   /* below 2^-14 the sum aligns the bits, and rounds */
    vu large = 0x7c00 | ((vu)(size > 0x7f800000) & 0x0200);          /* infinity, NaN */
    vu is_small = (vu)(size < 0x38800000), is_large = (vu)(size >= 0x47800000);
    vu result = (is_small & small) | (is_large & large) | (~(is_small | is_large) & normal);
    return __builtin_convertvector(result | ((bits >> 16) & 0x8000), vh);
}

/* Fresh memory costs more than the arithmetic on it when it comes in pages of 4 KiB. From 16 MiB on, which the C library takes from the
 * system anew each time, huge pages are asked for; where the system has none, nothing changes. */
static inline void ask_for_huge_pages(void *start, int64_t bytes) {
#ifdef MADV_HUGEPAGE
    uintptr_t first = ((uintptr_t)start + 4095) & ~(uintptr_t)4095, end = ((uintptr_t)start + bytes) & ~(uintptr_t)4095;
    if (bytes >= 1 << 24) madvise((void *)first, end - first, MADV_HUGEPAGE);
#else
    (void)start, (void)bytes;
#endif
}

/* Scratch memory, aligned for vectors, NULL where there is none; freed with free. */
static inline void *allocate(int64_t bytes) {
    void *memory = aligned_alloc(128, ((size_t)bytes + 128) / 128 * 128);
    if (memory) ask_for_huge_pages(memory, bytes);
    return memory;
}

static inline int64_t size_of(int type) { return type == FLOAT32 ? 4 : 2; }

static inline vf v_load(const void *from, int type) {
    vf x;
    vh h;
    if (type == FLOAT32) {
        memcpy(&x, from, sizeof x);
        return x;
    }
    memcpy(&h, from, sizeof h);
    return type == BFLOAT16 ? v_from_bfloat16(h) : v_from_float16(h);
}

static inline void v_store(void *to, vf x, int type) {
    if (type == FLOAT32) {
        memcpy(to, &x, sizeof x);
    } else {
        vh h = type == BFLOAT16 ? v_to_bfloat16(x) : v_to_float16(x);
        memcpy(to, &h, sizeof h);
    }
}

/* The first n < LANES numbers; the other lanes are `fill`. */
static inline vf v_load_part(const void *from, int type, int64_t n, float fill) {
    uint16_t half[LANES] = {0};
    vf x = v_set(fill), y;
    if (type == FLOAT32) {
        memcpy(&x, from, 4 * n);
        return x;
    }
    memcpy(half, from, 2 * n);
    y = v_load(half, type);
    memcpy(&x, &y, 4 * n);
    return x;
}

static inline void v_store_part(void *to, vf x, int type, int64_t n) {
    float whole[LANES];
    v_store(whole, x, type);
    memcpy(to, whole, size_of(type) * n);
}

#endif
