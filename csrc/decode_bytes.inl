// A pair of queries over a cache of 8 bits, in integers. Queries are rounded to QUERY_STEPS steps on each side of zero,
// the weights of a chunk to WEIGHT_STEPS of its largest: numbers of a query are off by 1/32512 of its largest at most,
// weights by 1/65534. Every sum is exact in int32, whatever its order and wherever a ring ends. Included by
// decode_attention.inl.
//
// Where a processor multiplies bytes by fours, both kinds of steps are cut into two bytes. Values then lie four
// positions to a lane, so that their columns come out in the order of `place_of_four`.

constexpr int64_t QUERY_STEPS = 127 * 128, WEIGHT_STEPS = 32767;
static_assert(128 * QUERY_STEPS * MAX_HEAD_DIM <= INT32_MAX && 128 * WEIGHT_STEPS * CHUNK <= INT32_MAX, "sums fit");

// Columns of values that are added at once, and how many sums a vector holds.
#if defined(__AVX512VNNI__)
constexpr int64_t COLUMNS = 64, LANES = 16;
#elif defined(__AVX2__)
constexpr int64_t COLUMNS = 16, LANES = 8;
#else
constexpr int64_t COLUMNS = 4, LANES = 4;
#endif
constexpr int64_t ROWS_AT_ONCE = 8;
// Where the sums of four neighboring columns lie: interleaving rows deals out fours to vectors in turn.
static inline int64_t place_of_four(int64_t column) {
    const int64_t n_vectors = COLUMNS / LANES, start = column / COLUMNS * COLUMNS, four = column % COLUMNS / 4;
    return start + four % n_vectors * LANES + four / n_vectors * 4;
}

// Round n numbers to steps of their largest magnitude / n_steps and return that step, NaN where one is not finite.
static inline float round_to_steps(const float* x, int64_t n, int64_t n_steps, int16_t* steps) {
    vf largest = vzero(), none = vzero();
    auto look = [&](vf piece) {
        largest = vmax(largest, vmax(piece, vzero() - piece));
        none = vfma(piece, vzero(), none);
    };
    over(n, [&](int64_t i) { look(vload(x + i)); }, [&](int64_t i, int64_t m) { look(load_n(x + i, m)); });
    const float most = hmax(largest), inverse = (float)n_steps / most;
    const bool is_finite = hsum(none) == 0.0f;
    if (!is_finite || !(inverse < INFINITY)) {
        memset(steps, 0, n * sizeof(int16_t));
        return is_finite ? 0.0f : NAN;
    }
    for (int64_t i = 0; i < n; i++) {
        float scaled = x[i] * inverse;
        steps[i] = (int16_t)(scaled + copysignf(0.5f, scaled));
    }
    return most / (float)n_steps;
}

template <>
struct Pair<byte> {
    const int64_t head_dim;
    int64_t owner;
    alignas(64) int32_t sums[2][MAX_HEAD_DIM];
    alignas(64) int16_t queries[2][MAX_HEAD_DIM], weights[2][CHUNK + 1];
    float query_step[2], weight_step[2];
#if defined(__AVX512VNNI__)
    alignas(64) int8_t query_high[2][MAX_HEAD_DIM], query_low[2][MAX_HEAD_DIM];  // 128 high + low
    alignas(64) uint8_t weight_high[2][CHUNK + 3], weight_low[2][CHUNK + 3];    // 256 high + low
    int32_t start[2];  // makes good for keys that are multiplied as numbers from 0 to 255
#endif

    explicit Pair(int64_t head_dim) : head_dim(head_dim), owner(-1) {}
    int64_t width() const { return (head_dim + 63) / 64 * 64; }
    void prepare(const float* q, int64_t its_owner) {
        owner = its_owner;
        for (int which = 0; which < 2; which++) {
            int16_t* steps = queries[which];
            query_step[which] = round_to_steps(q + which * head_dim, head_dim, QUERY_STEPS, steps);
            memset(steps + head_dim, 0, (width() - head_dim) * sizeof(int16_t));
#if defined(__AVX512VNNI__)
            int32_t sum = 0;
            for (int64_t i = 0; i < width(); i++) {
                int high = (steps[i] + 64) >> 7;
                query_high[which][i] = (int8_t)high;
                query_low[which][i] = (int8_t)(steps[i] - high * 128);
                sum += steps[i];
            }
            start[which] = -128 * sum;
#endif
        }
    }
    void begin(const float* first, const float* second, int64_t n) {
        for (int which = 0; which < 2; which++) {
            memset(sums[which], 0, width() * sizeof(int32_t));
            weight_step[which] = round_to_steps(which ? second : first, n, WEIGHT_STEPS, weights[which]);
#if defined(__AVX512VNNI__)
            for (int64_t s = 0; s < n; s++) {
                weight_high[which][s] = (uint8_t)(weights[which][s] >> 8);
                weight_low[which][s] = (uint8_t)weights[which][s];
            }
#endif
        }
    }
    // Some rows at a time, column by column.
    void add(const byte* values, int64_t offset, int64_t n, const byte* limit, Ahead& ahead) {
        for (int64_t s = 0, m; s < n; s += m, values += m * head_dim) {
            m = n - s < ROWS_AT_ONCE ? n - s : ROWS_AT_ONCE;
            const byte* next = values + m * head_dim;
            add_rows(values, offset + s, m, limit - next >= m * width() ? next : nullptr, ahead);
        }
    }
    void put(float* first, float* second) const {
        for (int which = 0; which < 2; which++) {
            float* to = which ? second : first;
            int64_t i = 0;
#if defined(__AVX512VNNI__)
            for (; i + COLUMNS <= head_dim; i += COLUMNS) put_columns(sums[which] + i, weight_step[which], to + i);
#endif
            for (; i < head_dim; i += 4) {
                const int32_t* from = sums[which] + place_of_four(i);
                for (int64_t j = 0; j < (head_dim - i < 4 ? head_dim - i : 4); j++)
                    to[i + j] = (float)from[j] * weight_step[which];
            }
        }
    }

#if defined(__AVX512VNNI__)
    static __mmask64 columns_left(int64_t n) { return n < 64 ? (1ull << n) - 1 : ~0ull; }

    // The sums of four vectors' lanes.
    static __m128i sums_of_four(const __m512i* x) {
        __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]));
        __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(x[2], x[3]), _mm512_unpackhi_epi32(x[2], x[3]));
        __m512i c = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
        __m256i d = _mm256_add_epi32(_mm512_castsi512_si256(c), _mm512_extracti64x4_epi64(c, 1));
        return _mm_add_epi32(_mm256_castsi256_si128(d), _mm256_extracti128_si256(d, 1));
    }
    // 64 columns of sums in their order: neighboring fours stand at the same place of four vectors.
    static void put_columns(const int32_t* from, float step, float* to) {
        __m512 sums[4], two[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            sums[j] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_load_si512(from + j * LANES)), _mm512_set1_ps(step));
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            two[j] = _mm512_shuffle_f32x4(sums[2 * j], sums[2 * j + 1], 0x44);
            two[2 + j] = _mm512_shuffle_f32x4(sums[2 * j], sums[2 * j + 1], 0xee);
        }
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            _mm512_storeu_ps(to + 2 * j * LANES, _mm512_shuffle_f32x4(two[2 * j], two[2 * j + 1], 0x88));
            _mm512_storeu_ps(to + (2 * j + 1) * LANES, _mm512_shuffle_f32x4(two[2 * j], two[2 * j + 1], 0xdd));
        }
    }

    // Four keys; past the last one it is read again, and what stands behind the products is of no use.
    void multiply_four(const byte* keys, int64_t n, float* first, float* second, const char* ahead, const byte* next) const {
        const byte* rows[4];
        __m512i high[2][4], low[2][4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            rows[j] = keys + (j < n ? j : n - 1) * head_dim;
            high[0][j] = high[1][j] = _mm512_setzero_si512();
            low[0][j] = _mm512_zextsi128_si512(_mm_cvtsi32_si128(start[0]));
            low[1][j] = _mm512_zextsi128_si512(_mm_cvtsi32_si128(start[1]));
        }
        for (int64_t i = 0; i < head_dim; i += COLUMNS) {
            const __mmask64 mask = columns_left(head_dim - i);
            Ahead::ask<4 * COLUMNS>(ahead + 4 * i);
            if (next) touch<4 * COLUMNS>(next + 4 * i);
            __m512i up[2], down[2];
            for (int which = 0; which < 2; which++) {
                up[which] = _mm512_load_si512(query_high[which] + i);
                down[which] = _mm512_load_si512(query_low[which] + i);
            }
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                __m512i key = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, rows[j] + i), _mm512_set1_epi8(-128));
#pragma GCC unroll 2
                for (int which = 0; which < 2; which++) {
                    high[which][j] = _mm512_dpbusd_epi32(high[which][j], key, up[which]);
                    low[which][j] = _mm512_dpbusd_epi32(low[which][j], key, down[which]);
                }
            }
        }
#pragma GCC unroll 2
        for (int which = 0; which < 2; which++) {
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++)
                low[which][j] = _mm512_add_epi32(low[which][j], _mm512_slli_epi32(high[which][j], 7));
            __m128 products = _mm_cvtepi32_ps(sums_of_four(low[which]));
            _mm_storeu_ps(which ? second : first, _mm_mul_ps(products, _mm_set1_ps(query_step[which])));
        }
    }
    void multiply(const byte* keys, int64_t n, const byte* limit, float* first, float* second, Ahead& ahead) const {
        const int64_t four = 4 * head_dim;
        for (int64_t s = 0; s < n; s += 4, keys += four) {
            const byte* next = keys + 2 * four;
            ahead.hurry(keys);
            multiply_four(keys, n - s, first + s, second + s, ahead.take(four, keys),
                          limit - next >= 4 * width() ? next : nullptr);
        }
    }

    static __m512i four_weights(const uint8_t* weights, int64_t n) {
        uint32_t bits;
        memcpy(&bits, weights, 4);
        return _mm512_set1_epi32((int)(n < 4 ? bits & ((1u << 8 * n) - 1) : bits));
    }
    // Add 64 columns, from `column` on, of the values of n places, whose weights lie from `offset` on.
    void add_columns(const byte* values, int64_t offset, int64_t n, int64_t column, const byte* next, Ahead& ahead) {
        const __mmask64 mask = columns_left(head_dim - column);
        __m512i high[2][4], low[2][4];
        for (int j = 0; j < 4; j++) high[0][j] = high[1][j] = low[0][j] = low[1][j] = _mm512_setzero_si512();
        for (int64_t s = 0; s < n; s += 4) {
            Ahead::ask<4 * COLUMNS>(ahead.take(4 * COLUMNS, values));
            if (next && s + 4 <= n) touch<4 * COLUMNS>(next + s * COLUMNS);
            __m512i row[4], two[4], four[4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++)
                row[j] = _mm512_maskz_loadu_epi8(mask, values + (s + j < n ? s + j : n - 1) * head_dim + column);
            two[0] = _mm512_unpacklo_epi8(row[0], row[1]), two[1] = _mm512_unpackhi_epi8(row[0], row[1]);
            two[2] = _mm512_unpacklo_epi8(row[2], row[3]), two[3] = _mm512_unpackhi_epi8(row[2], row[3]);
            four[0] = _mm512_unpacklo_epi16(two[0], two[2]), four[1] = _mm512_unpackhi_epi16(two[0], two[2]);
            four[2] = _mm512_unpacklo_epi16(two[1], two[3]), four[3] = _mm512_unpackhi_epi16(two[1], two[3]);
#pragma GCC unroll 2
            for (int which = 0; which < 2; which++) {
                __m512i up = four_weights(weight_high[which] + offset + s, n - s);
                __m512i down = four_weights(weight_low[which] + offset + s, n - s);
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++) {
                    high[which][j] = _mm512_dpbusd_epi32(high[which][j], up, four[j]);
                    low[which][j] = _mm512_dpbusd_epi32(low[which][j], down, four[j]);
                }
            }
        }
#pragma GCC unroll 2
        for (int which = 0; which < 2; which++)
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                __m512i* to = (__m512i*)(sums[which] + column + j * LANES);
                __m512i sum = _mm512_add_epi32(low[which][j], _mm512_slli_epi32(high[which][j], 8));
                *to = _mm512_add_epi32(*to, sum);
            }
    }
    void add_rows(const byte* values, int64_t offset, int64_t n, const byte* next, Ahead& ahead) {
        for (int64_t i = 0; i < head_dim; i += COLUMNS)
            add_columns(values, offset, n, i, next ? next + i * n : nullptr, ahead);
    }
#else
    void multiply(const byte* keys, int64_t n, const byte*, float* first, float* second, Ahead&) const {
        for (int64_t s = 0; s < n; s++) {
            int32_t a = 0, b = 0;
            for (int64_t i = 0; i < head_dim; i++) {
                a += queries[0][i] * keys[s * head_dim + i].bits;
                b += queries[1][i] * keys[s * head_dim + i].bits;
            }
            first[s] = (float)a * query_step[0];
            second[s] = (float)b * query_step[1];
        }
    }
#if defined(__AVX2__)
    static __m256i widened(const byte* from, int64_t n) {
        if (n >= COLUMNS) return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)from));
        byte some[COLUMNS] = {};
        memcpy(some, from, n);
        return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)some));
    }
    void add_rows(const byte* values, int64_t offset, int64_t n, const byte*, Ahead&) {
        for (int64_t i = 0; i < head_dim; i += COLUMNS) {
            __m256i total[2][2];
            for (int which = 0; which < 2; which++)
                for (int j = 0; j < 2; j++) total[which][j] = *(const __m256i*)(sums[which] + i + j * LANES);
            for (int64_t s = 0; s < n; s += 2) {
                const bool is_pair = s + 1 < n;
                __m256i row = widened(values + s * head_dim + i, head_dim - i);
                __m256i next = widened(values + (s + is_pair) * head_dim + i, head_dim - i);
                __m256i low = _mm256_unpacklo_epi16(row, next), high = _mm256_unpackhi_epi16(row, next);
#pragma GCC unroll 2
                for (int which = 0; which < 2; which++) {
                    int32_t bits;
                    memcpy(&bits, weights[which] + offset + s, 4);
                    __m256i both = _mm256_set1_epi32(is_pair ? bits : bits & 0xffff);
                    total[which][0] = _mm256_add_epi32(total[which][0], _mm256_madd_epi16(low, both));
                    total[which][1] = _mm256_add_epi32(total[which][1], _mm256_madd_epi16(high, both));
                }
            }
            for (int which = 0; which < 2; which++)
                for (int j = 0; j < 2; j++) *(__m256i*)(sums[which] + i + j * LANES) = total[which][j];
        }
    }
#else
    void add_rows(const byte* values, int64_t offset, int64_t n, const byte*, Ahead&) {
        for (int64_t s = 0; s < n; s++) {
            for (int64_t i = 0; i < head_dim; i++) {
                sums[0][i] += weights[0][offset + s] * values[s * head_dim + i].bits;
                sums[1][i] += weights[1][offset + s] * values[s * head_dim + i].bits;
            }
        }
    }
#endif
#endif
};
