// Vectors of sixteen floats; see simd_portable.h. Serves every unit with AVX512 F, BW, DQ and VL.
#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

namespace {

struct bf16 {
    uint16_t bits;
};

typedef __m512 vf;
struct vd {
    __m512d low, high;
};
constexpr int64_t W = 16;

static inline vf vset(float x) { return _mm512_set1_ps(x); }
static inline __mmask16 first_lanes(int64_t n) { return (__mmask16)((1u << n) - 1); }
static inline vf widen(__m256i bits) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
// Round to the nearest bfloat16, ties to even; a NaN stays one.
static inline __m256i narrow(vf x) {
#if defined(__AVX512BF16__)
    return (__m256i)_mm512_cvtneps_pbh(x);  // subnormal numbers become 0
#else
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
#endif
}
static inline vf vload(const float* p) { return _mm512_loadu_ps(p); }
static inline vf vload(const bf16* p) { return widen(_mm256_loadu_si256((const __m256i*)p)); }
static inline void vstore(float* p, vf x) { _mm512_storeu_ps(p, x); }
static inline void vstore(bf16* p, vf x) { _mm256_storeu_si256((__m256i*)p, narrow(x)); }
static inline vf load_n(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
static inline vf load_n(const bf16* p, int64_t n) { return widen(_mm256_maskz_loadu_epi16(first_lanes(n), p)); }
static inline void store_n(float* p, vf x, int64_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), x); }
static inline void store_n(bf16* p, vf x, int64_t n) { _mm256_mask_storeu_epi16(p, first_lanes(n), narrow(x)); }
static inline vf keep_n(vf x, int64_t n, float fill) {
    return _mm512_mask_blend_ps(first_lanes(n), _mm512_set1_ps(fill), x);
}

static inline vf vfma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf vmax(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf vmin(vf a, vf b) { return _mm512_min_ps(a, b); }
// Which lanes are at least `least`, a bit each; a NaN is not.
static inline uint32_t lanes_at_least(vf x, vf least) { return _mm512_cmp_ps_mask(x, least, _CMP_GE_OQ); }
static inline vf vsqrt(vf x) { return _mm512_sqrt_ps(x); }
// 1 / x for a finite x other than 0, from 14 bits by one step of Newton's.
static inline vf vinverse(vf x) {
    vf y = _mm512_rcp14_ps(x);
    return y * _mm512_fnmadd_ps(x, y, vset(2.0f));
}
static inline vf vround(vf x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// x * 2^n for an integral n.
static inline vf vpow2(vf n, vf x) { return _mm512_scalef_ps(x, n); }
static inline float hsum(vf x) { return _mm512_reduce_add_ps(x); }
static inline float hmax(vf x) { return _mm512_reduce_max_ps(x); }
static inline vf round_to_bf16(vf x) { return widen(narrow(x)); }

static inline vd dzero() { return vd{_mm512_setzero_pd(), _mm512_setzero_pd()}; }
static inline vd dadd_square(vd sum, vf x) {
    __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x)), high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
    return vd{_mm512_fmadd_pd(low, low, sum.low), _mm512_fmadd_pd(high, high, sum.high)};
}
static inline double dsum(vd x) { return _mm512_reduce_add_pd(_mm512_add_pd(x.low, x.high)); }

}  // namespace
