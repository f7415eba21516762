// Vectors of one float: what every compiler and processor has, and the plainest reading of the kernels.
//
// Each simd_*.h offers the same names: W floats in a `vf`, arithmetic by operators, bfloat16 as `bf16`.
// load_n and store_n touch the first n < W elements only; lanes beyond n read as 0, and keep_n sets them to another value. In vmax and vmin a
// NaN in the second argument survives, one in the first does not.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

namespace {

struct bf16 {
    uint16_t bits;
};

typedef float vf;
typedef double vd;  // sums of squares
constexpr int64_t W = 1;

static inline vf vset(float x) { return x; }
static inline vf vload(const float* p) { return *p; }
static inline vf vload(const bf16* p) {
    uint32_t bits = (uint32_t)p->bits << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
// Round to the nearest bfloat16, ties to even; a NaN stays one.
static inline bf16 to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x) return bf16{(uint16_t)((bits >> 16) | 0x40)};
    return bf16{(uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
static inline void vstore(float* p, vf x) { *p = x; }
static inline void vstore(bf16* p, vf x) { *p = to_bf16(x); }
template <class T>
static inline vf load_n(const T*, int64_t) { return 0; }
template <class T>
static inline void store_n(T*, vf, int64_t) {}
static inline vf keep_n(vf x, int64_t, float) { return x; }

static inline vf vfma(vf a, vf b, vf c) { return a * b + c; }
static inline vf vmax(vf a, vf b) { return a > b ? a : b; }
static inline vf vmin(vf a, vf b) { return a < b ? a : b; }
// Which lanes are at least `least`, a bit each; a NaN is not.
static inline uint32_t lanes_at_least(vf x, vf least) { return x >= least; }
static inline vf vsqrt(vf x) { return sqrtf(x); }
static inline vf vinverse(vf x) { return 1.0f / x; }  // for a finite x other than 0
static inline vf vround(vf x) { return x + 12582912.0f - 12582912.0f; }  // for |x| < 2^22
// 2^n for an integral n; beyond float32's exponents it is 0 or infinity.
static inline vf vpow2(vf n, vf x) {
    int32_t whole = n != n ? 0 : (int32_t)n, half = whole / 2;
    uint32_t a = (uint32_t)(half + 127) << 23, b = (uint32_t)(whole - half + 127) << 23;
    float first, second;
    memcpy(&first, &a, 4);
    memcpy(&second, &b, 4);
    return x * first * second;
}
static inline float hsum(vf x) { return x; }
static inline float hmax(vf x) { return x; }
static inline vf round_to_bf16(vf x) {
    bf16 rounded = to_bf16(x);
    return vload(&rounded);
}

static inline vd dzero() { return 0; }
static inline vd dadd_square(vd sum, vf x) { return sum + (double)x * x; }
static inline double dsum(vd x) { return x; }

}  // namespace
