// Vectors of eight floats; see simd_portable.h.
#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

namespace {

struct bf16 {
    uint16_t bits;
};

typedef __m256 vf;
struct vd {
    __m256d low, high;
};
constexpr int64_t W = 8;

static inline vf vset(float x) { return _mm256_set1_ps(x); }
static inline vf widen(__m128i bits) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
// Round to the nearest bfloat16, ties to even; a NaN stays one.
static inline __m128i narrow(vf x) {
    __m256i bits = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    return _mm256_castsi256_si128(packed);
}
static inline vf vload(const float* p) { return _mm256_loadu_ps(p); }
static inline vf vload(const bf16* p) { return widen(_mm_loadu_si128((const __m128i*)p)); }
static inline void vstore(float* p, vf x) { _mm256_storeu_ps(p, x); }
static inline void vstore(bf16* p, vf x) { _mm_storeu_si128((__m128i*)p, narrow(x)); }
template <class T>
static inline vf load_n(const T* p, int64_t n) {
    T some[8] = {};
    memcpy(some, p, n * sizeof(T));
    return vload(some);
}
template <class T>
static inline void store_n(T* p, vf x, int64_t n) {
    T all[8];
    vstore(all, x);
    memcpy(p, all, n * sizeof(T));
}
static inline vf keep_n(vf x, int64_t n, float fill) {
    __m256i is_kept = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return _mm256_blendv_ps(_mm256_set1_ps(fill), x, _mm256_castsi256_ps(is_kept));
}

static inline vf vfma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf vmax(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf vmin(vf a, vf b) { return _mm256_min_ps(a, b); }
// Which lanes are at least `least`, a bit each; a NaN is not.
static inline uint32_t lanes_at_least(vf x, vf least) {
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x, least, _CMP_GE_OQ));
}
static inline vf vsqrt(vf x) { return _mm256_sqrt_ps(x); }
static inline vf vinverse(vf x) { return vset(1.0f) / x; }
static inline vf vround(vf x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vf power(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
// x * 2^n for an integral n, in two factors so that the result may be subnormal or infinite.
static inline vf vpow2(vf n, vf x) {
    __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    return x * power(half) * power(_mm256_sub_epi32(whole, half));
}
static inline float hsum(vf x) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
static inline float hmax(vf x) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
static inline vf round_to_bf16(vf x) { return widen(narrow(x)); }

static inline vd dzero() { return vd{_mm256_setzero_pd(), _mm256_setzero_pd()}; }
static inline vd dadd_square(vd sum, vf x) {
    __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(x)), high = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
    return vd{_mm256_fmadd_pd(low, low, sum.low), _mm256_fmadd_pd(high, high, sum.high)};
}
static inline double dsum(vd x) {
    double parts[4];
    _mm256_storeu_pd(parts, _mm256_add_pd(x.low, x.high));
    return (parts[0] + parts[2]) + (parts[1] + parts[3]);
}

}  // namespace
