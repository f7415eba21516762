// Products of bytes, exact in int32, for each width of vectors. A `vi` holds W lanes of 32 bits, which are
// sums, or four bytes each. Included by quant.inl.
//
// idot adds to each lane the products of its four bytes 0 to 255 with the four bytes -128 to 127 at x; in
// idot_small the former are 0 to 15. iproduct multiplies lanes of 0 to 255 with a number of 16 bits. irepeat makes a
// lane of each byte, four times that byte; isub_bytes subtracts bytes of 0 to 127.

struct f16 {
    uint16_t bits;
};

#if defined(__AVX512BW__)

typedef __m512i vi;
static inline vi iload(const uint8_t* p) { return _mm512_loadu_si512(p); }
static inline void istore(uint8_t* p, vi x) { _mm512_storeu_si512(p, x); }
static inline vi iset(int32_t x) { return _mm512_set1_epi32(x); }
static inline vi ifour(const int8_t* x) {
    int32_t bits;
    memcpy(&bits, x, 4);
    return _mm512_set1_epi32(bits);
}
static inline vi low_halves(vi w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }
static inline vi high_halves(vi w) { return low_halves(_mm512_srli_epi16(w, 4)); }
static inline vf ifloat(vi x) { return _mm512_cvtepi32_ps(x); }
static inline vi iwiden(const uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }
static inline vi iproduct(vi small, int32_t x) { return _mm512_madd_epi16(small, iset(x)); }
static inline vi iadd(vi a, vi b) { return _mm512_add_epi32(a, b); }
static inline vi irepeat(const uint8_t* p) { return _mm512_mullo_epi32(iwiden(p), iset(0x01010101)); }
static inline vi isub_bytes(vi a, vi b) { return _mm512_sub_epi8(a, b); }
static inline vf vload(const f16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
static inline void store_bytes(int8_t* p, vf x) {
    _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
}
#if defined(__AVX512VNNI__)
static inline vi idot(vi sum, vi w, const int8_t* x) { return _mm512_dpbusd_epi32(sum, w, ifour(x)); }
static inline vi idot_small(vi sum, vi w, const int8_t* x) { return idot(sum, w, x); }
#else
static inline vi idot(vi sum, vi w, const int8_t* x) {
    vi four = ifour(x), even = _mm512_srai_epi16(_mm512_slli_epi16(four, 8), 8), odd = _mm512_srai_epi16(four, 8);
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_and_si512(w, _mm512_set1_epi16(255)), even));
    return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_srli_epi16(w, 8), odd));
}
static inline vi idot_small(vi sum, vi w, const int8_t* x) {
    vi pairs = _mm512_maddubs_epi16(w, ifour(x));  // at most 2 * 15 * 128: nothing saturates
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
#endif
constexpr int QUANT_ROWS = 8;

#elif defined(__AVX2__)

typedef __m256i vi;
static inline vi iload(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
static inline void istore(uint8_t* p, vi x) { _mm256_storeu_si256((__m256i*)p, x); }
static inline vi iset(int32_t x) { return _mm256_set1_epi32(x); }
static inline vi ifour(const int8_t* x) {
    int32_t bits;
    memcpy(&bits, x, 4);
    return _mm256_set1_epi32(bits);
}
static inline vi low_halves(vi w) { return _mm256_and_si256(w, _mm256_set1_epi8(15)); }
static inline vi high_halves(vi w) { return low_halves(_mm256_srli_epi16(w, 4)); }
static inline vf ifloat(vi x) { return _mm256_cvtepi32_ps(x); }
static inline vi iwiden(const uint8_t* p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
static inline vi iproduct(vi small, int32_t x) { return _mm256_madd_epi16(small, iset(x)); }
static inline vi iadd(vi a, vi b) { return _mm256_add_epi32(a, b); }
static inline vi irepeat(const uint8_t* p) { return _mm256_mullo_epi32(iwiden(p), iset(0x01010101)); }
static inline vi isub_bytes(vi a, vi b) { return _mm256_sub_epi8(a, b); }
static inline vf vload(const f16* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
static inline void store_bytes(int8_t* p, vf x) {
    vi whole = _mm256_cvtps_epi32(x);
    vi words = _mm256_permute4x64_epi64(_mm256_packs_epi32(whole, whole), 0x08);
    _mm_storel_epi64((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_castsi256_si128(words)));
}
static inline vi idot(vi sum, vi w, const int8_t* x) {
    vi four = ifour(x), even = _mm256_srai_epi16(_mm256_slli_epi16(four, 8), 8), odd = _mm256_srai_epi16(four, 8);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_and_si256(w, _mm256_set1_epi16(255)), even));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_srli_epi16(w, 8), odd));
}
static inline vi idot_small(vi sum, vi w, const int8_t* x) {
    vi pairs = _mm256_maddubs_epi16(w, ifour(x));  // at most 2 * 15 * 128: nothing saturates
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
constexpr int QUANT_ROWS = 4;

#else

typedef uint32_t vi;
static inline vi iload(const uint8_t* p) {
    return (vi)p[0] | (vi)p[1] << 8 | (vi)p[2] << 16 | (vi)p[3] << 24;
}
static inline void istore(uint8_t* p, vi x) {
    for (int i = 0; i < 4; i++) p[i] = (uint8_t)(x >> 8 * i);
}
static inline vi iset(int32_t x) { return (vi)x; }
static inline vi low_halves(vi w) { return w & 0x0f0f0f0fu; }
static inline vi high_halves(vi w) { return w >> 4 & 0x0f0f0f0fu; }
static inline vf ifloat(vi x) { return (float)(int32_t)x; }
static inline vi iwiden(const uint8_t* p) { return *p; }
static inline vi iproduct(vi small, int32_t x) { return (vi)((int32_t)small * x); }
static inline vi iadd(vi a, vi b) { return a + b; }
static inline vi irepeat(const uint8_t* p) { return *p * 0x01010101u; }
static inline vi isub_bytes(vi a, vi b) { return ((a | 0x80808080u) - b) ^ 0x80808080u; }
static inline vf vload(const f16* p) {
    uint32_t sign = (uint32_t)(p->bits & 0x8000) << 16, rest = (uint32_t)(p->bits & 0x7fff) << 13, bits;
    float x;
    if (rest >= 0x0f800000u) bits = rest | 0x7f800000u;  // infinite or NaN
    else bits = rest;
    memcpy(&x, &bits, 4);
    if (rest < 0x0f800000u) x *= 0x1p112f;  // the exponent's other offset; subnormal numbers come out right too
    return sign ? -x : x;
}
static inline void store_bytes(int8_t* p, vf x) { *p = (int8_t)x; }
static inline vi idot(vi sum, vi w, const int8_t* x) {
    for (int i = 0; i < 4; i++) sum += (vi)((int32_t)(w >> 8 * i & 255u) * x[i]);
    return sum;
}
static inline vi idot_small(vi sum, vi w, const int8_t* x) { return idot(sum, w, x); }
constexpr int QUANT_ROWS = 4;

#endif
