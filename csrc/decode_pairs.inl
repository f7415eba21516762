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
        if (!is_back) order_pair(kind, from + start, to + start);
        else
            for (int64_t i = 0; i < 2 * W; i++) to[start + i] = from[start + place_in_pair(kind, i)];
    }
    memcpy(to + n_paired, from + n_paired, (n - n_paired) * sizeof(float));
}
