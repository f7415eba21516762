// Matrix products of attention. Operands lie in units of 32 bits: one float, or two bfloat16 that follow
// each other along the summed axis, as the processor's bfloat16 instructions take them.
//
//     left  [rows][n_units]     a unit is spread over a whole vector
//     right [n_units][columns]  a vector holds one unit of several columns
//     sum   [rows][columns]     floats
//
// Buffers hold units as floats, which are loaded and stored but never calculated with. All rows and columns
// come in multiples of what the products take at once; the places beyond a tensor's end hold zeros.

// Rows of a tile of keys, columns of a panel of queries.
constexpr int64_t TILE = 64;
// Head sizes are filled up to multiples of this, the width of a tile register in bfloat16.
constexpr int64_t FILL = 32;

// The widest vectors of the products: those of simd_*.h, but four floats where that has single ones. Every
// compiler that takes these kernels has such vectors, whether or not the processor does.
#if defined(__AVX2__)
typedef vf Wide;
static inline Wide load_wide(const float* from) { return vload(from); }
static inline void store_wide(float* to, Wide x) { vstore(to, x); }
static inline Wide spread(float x) { return vset(x); }
static inline Wide multiply_add(Wide a, Wide b, Wide c) { return vfma(a, b, c); }
#else
typedef float Wide __attribute__((vector_size(16)));
static inline Wide load_wide(const float* from) {
    Wide x;
    memcpy(&x, from, sizeof(x));
    return x;
}
static inline void store_wide(float* to, Wide x) { memcpy(to, &x, sizeof(x)); }
static inline Wide spread(float x) { return Wide{x, x, x, x}; }
static inline Wide multiply_add(Wide a, Wide b, Wide c) { return a * b + c; }
#endif
constexpr int64_t WIDTH = sizeof(Wide) / sizeof(float);

// Whatever type it was written as.
static inline float read_unit(const float* from) {
    float unit;
    memcpy(&unit, from, sizeof(unit));
    return unit;
}

// Always inline: calls cost this product alone a sixth of its time, the whole backward pass a twentieth.
template <class Units, int ROWS, int COLUMNS>
__attribute__((always_inline)) static inline void multiply_block(const float* left, int64_t left_stride, const float* right, int64_t right_stride,
                                  float* sum, int64_t sum_stride, int64_t n_units, bool adds) {
    Wide total[ROWS][COLUMNS];
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLUMNS; c++) total[r][c] = adds ? load_wide(sum + r * sum_stride + c * WIDTH) : spread(0.0f);
#pragma GCC unroll 4
    for (int64_t unit = 0; unit < n_units; unit++) {
        Wide column[COLUMNS];
        for (int c = 0; c < COLUMNS; c++) column[c] = load_wide(right + unit * right_stride + c * WIDTH);
        for (int r = 0; r < ROWS; r++) {
            Wide row = spread(read_unit(left + r * left_stride + unit));
            for (int c = 0; c < COLUMNS; c++) total[r][c] = Units::step(total[r][c], row, column[c]);
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLUMNS; c++) store_wide(sum + r * sum_stride + c * WIDTH, total[r][c]);
}

// The products of units that vectors multiply. Rows are a multiple of 4, columns of 32.
template <class Units>
struct VectorProduct {
    // Keys of a tile are left out in groups of this many.
    static constexpr int64_t ROUND = 8;
    static void begin() {}
    static void end() {}

    static void multiply(const float* left, int64_t left_stride, const float* right, int64_t right_stride,
                         float* sum, int64_t sum_stride, int64_t n_rows, int64_t n_columns, int64_t n_units,
                         bool adds) {
        constexpr int COLUMNS = WIDTH == 16 ? 4 : 2;
        int64_t column = 0;
        for (; column + COLUMNS * WIDTH <= n_columns; column += COLUMNS * WIDTH)
            for (int64_t row = 0; row < n_rows; row += 4)
                multiply_block<Units, 4, COLUMNS>(left + row * left_stride, left_stride, right + column, right_stride,
                                                  sum + row * sum_stride + column, sum_stride, n_units, adds);
        if (column == n_columns) return;
        for (int64_t row = 0; row < n_rows; row += 4)  // the last 32 columns of vectors of 16
            multiply_block<Units, 4, 2>(left + row * left_stride, left_stride, right + column, right_stride,
                                        sum + row * sum_stride + column, sum_stride, n_units, adds);
    }
};

struct Floats : VectorProduct<Floats> {
    static constexpr int64_t PER_UNIT = 1;
    static inline Wide step(Wide sum, Wide left, Wide right) { return multiply_add(left, right, sum); }
    // Store two rows of floats, `row` and the next, as a right operand; return the sum of what it holds of them.
    static inline vf put_right(float* right, int64_t row, int64_t lane, vf even, vf odd) {
        vstore(right + row * TILE + lane, even);
        vstore(right + (row + 1) * TILE + lane, odd);
        return even + odd;
    }
    // The same as a left operand that sums over the lanes.
    static inline void put_left(float* left, int64_t row, int64_t lane, vf even, vf odd) {
        put_right(left, row, lane, even, odd);
    }
};

#if defined(__AVX512BF16__)
struct PairStore {
    static constexpr int64_t PER_UNIT = 2;
    static inline vf put_right(float* right, int64_t row, int64_t lane, vf even, vf odd) {
        __m512i both = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
        __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(both));
        __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(both, 1)), 16);
        vstore(right + row / 2 * TILE + lane, _mm512_castsi512_ps(_mm512_or_si512(low, high)));
        return _mm512_castsi512_ps(_mm512_slli_epi32(low, 16)) + _mm512_castsi512_ps(high);
    }
    static inline void put_left(float* left, int64_t row, int64_t lane, vf even, vf odd) {
        __m512i both = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
        _mm256_storeu_si256((__m256i*)(left + (row * TILE + lane) / 2), _mm512_castsi512_si256(both));
        _mm256_storeu_si256((__m256i*)(left + ((row + 1) * TILE + lane) / 2), _mm512_extracti64x4_epi64(both, 1));
    }
};
#else  // for tests of the tiles' code
struct PairStore {
    static constexpr int64_t PER_UNIT = 2;
    static inline vf put_right(float* right, int64_t row, int64_t lane, vf even, vf odd) {
        bf16 first[W], second[W];
        vstore(first, even);
        vstore(second, odd);
        for (int64_t i = 0; i < W; i++) {
            memcpy((char*)(right + row / 2 * TILE + lane + i), first + i, 2);
            memcpy((char*)(right + row / 2 * TILE + lane + i) + 2, second + i, 2);
        }
        return vload(first) + vload(second);
    }
    static inline void put_left(float* left, int64_t row, int64_t lane, vf even, vf odd) {
        vstore((bf16*)left + row * TILE + lane, even);
        vstore((bf16*)left + (row + 1) * TILE + lane, odd);
    }
};
#endif

#if defined(__AVX512BF16__)
struct Pairs : VectorProduct<Pairs>, PairStore {
    static inline Wide step(Wide sum, Wide left, Wide right) { return _mm512_dpbf16_ps(sum, (__m512bh)left, (__m512bh)right); }
};
#endif
