// Rows read two registers at a time. Of bfloat16 one gets the even elements, the other the odd ones, which costs an
// instruction each; what they are multiplied with lies in that order too, as far as whole pairs go. Included by
// decode.inl.
static inline void load_two(const float* p, vf* a, vf* b) { *a = vload(p), *b = vload(p + W); }
static inline void load_two(const byte* p, vf* a, vf* b) { *a = vload(p), *b = vload(p + W); }
static inline void load_two(const bf16* p, vf* a, vf* b) {
#if defined(__AVX512F__)
    __m512i both = _mm512_loadu_si512(p);
    *a = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    *b = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000)));
#elif defined(__AVX2__)
    __m256i both = _mm256_loadu_si256((const __m256i*)p);
    *a = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    *b = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32((int)0xffff0000)));
#else
    *a = vload(p), *b = vload(p + W);
#endif
}
// The same where loads are what is scarce: the compiler would load a line twice. Rows of weights out of memory are read a
// quarter slower this way.
template <class C>
static inline void load_two_once(const C* p, vf* a, vf* b) { load_two(p, a, b); }
#if defined(__AVX512F__)
static inline void load_two_once(const bf16* p, vf* a, vf* b) {
    __m512i both = _mm512_loadu_si512(p);
    asm("" : "+v"(both));
    *a = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    *b = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000)));
}
#endif
static inline void store_two(float* to, vf a, vf b, const float*) { vstore(to, a), vstore(to + W, b); }
static inline void store_two(float* to, vf a, vf b, const bf16*) {
#if defined(__AVX512F__)
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    vstore(to, _mm512_permutex2var_ps(a, low, b));
    vstore(to + W, _mm512_permutex2var_ps(a, _mm512_add_epi32(low, _mm512_set1_epi32(8)), b));
#elif defined(__AVX2__)
    vf low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
    vstore(to, _mm256_permute2f128_ps(low, high, 0x20));
    vstore(to + W, _mm256_permute2f128_ps(low, high, 0x31));
#else
    vstore(to, a), vstore(to + W, b);
#endif
}
template <class C>
static inline int64_t place_in_pair(const C*, int64_t i) { return i; }
static inline int64_t place_in_pair(const bf16*, int64_t i) { return W == 1 ? i : i % 2 * W + i / 2; }

// A whole pair of registers in the order of load_two.
template <class C>
static inline void order_pair(const C* kind, const float* from, float* to) {
    for (int64_t i = 0; i < 2 * W; i++) to[place_in_pair(kind, i)] = from[i];
}
#if defined(__AVX512F__)
static inline void order_pair(const bf16*, const float* from, float* to) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    vf a = vload(from), b = vload(from + W);
    vstore(to, _mm512_permutex2var_ps(a, even, b));
    vstore(to + W, _mm512_permutex2var_ps(a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b));
}
#endif

// Bring n numbers into the order of load_two, or back.
template <class C>
static inline void order_pairs(const C* kind, const float* from, float* to, int64_t n, bool is_back) {
    const int64_t n_paired = n / (2 * W) * 2 * W;
    for (int64_t start = 0; start < n_paired; start += 2 * W) {
        if (is_back) store_two(to + start, vload(from + start), vload(from + start + W), kind);
        else order_pair(kind, from + start, to + start);
    }
    memcpy(to + n_paired, from + n_paired, (n - n_paired) * sizeof(float));
}

// Sums of each of four vectors' lanes, in one order.
static inline void store_sums(const vf* x, float* to) {
#if defined(__AVX512F__)
    vf a = _mm512_unpacklo_ps(x[0], x[1]) + _mm512_unpackhi_ps(x[0], x[1]);
    vf b = _mm512_unpacklo_ps(x[2], x[3]) + _mm512_unpackhi_ps(x[2], x[3]);
    __m512d p = _mm512_castps_pd(a), q = _mm512_castps_pd(b);
    vf c = _mm512_castpd_ps(_mm512_unpacklo_pd(p, q)) + _mm512_castpd_ps(_mm512_unpackhi_pd(p, q));
    __m256 d = _mm512_castps512_ps256(c) + _mm512_extractf32x8_ps(c, 1);
    _mm_storeu_ps(to, _mm256_castps256_ps128(d) + _mm256_extractf128_ps(d, 1));
#else
    for (int j = 0; j < 4; j++) to[j] = hsum(x[j]);
#endif
}
