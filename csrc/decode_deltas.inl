// Low-rank deltas of a stage's matrices. Included by decode.inl.
//
// Before the products each thread makes its part of A x, and nobody waits for it there: who has multiplied a piece finds
// all parts made, or nearly so, and adds B's part to that piece. Sums have one order, whoever makes them.

constexpr int64_t ROWS_AHEAD = 2;      // of A, between what is read and what is asked for
constexpr int64_t DELTA_AHEAD = 4096;  // bytes, the same of B

// Ask for n numbers at once. The matrices are small, and lie on small pages that the processor's own looking ahead does
// not cross.
template <class T>
static inline void ask_for(const T* from, int64_t n) {
    for (int64_t line = 0; line < n * (int64_t)sizeof(T); line += 64) __builtin_prefetch((const char*)from + line, 0, 2);
}

static inline int64_t delta_bytes(const gs_delta& delta, int64_t n) { return delta.dtype == GS_BFLOAT16 ? 2 * n : 4 * n; }
static inline int64_t rank_of(const gs_matrix& m) { return m.delta ? m.delta->rank : 0; }

static inline int64_t adapter_of(const int64_t* adapters, int64_t row) { return adapters ? adapters[row] : 0; }

// Numbers begin to end of A x for every row that has an adapter: low[row, number].
template <class T>
static void lower_rows(const gs_matrix& m, const Inputs& in, const int64_t* adapters, int64_t begin, int64_t end,
                       float* low) {
    constexpr int ROWS = W == 16 ? 4 : 2;  // as in dense_block
    const int64_t rank = m.delta->rank;
    for (int64_t number = begin; number < end; number++)
        for (int64_t row = 0, size; row < in.n_rows; row += size) {
            const int64_t adapter = adapter_of(adapters, row);
            for (size = 1; size < ROWS && row + size < in.n_rows && adapter_of(adapters, row + size) == adapter;) size++;
            if (size < ROWS) size = 1;
            if (adapter < 0) continue;
            const T* weights = (const T*)m.delta->lora_a + (adapter * rank + number) * m.d_in;
            const float* x = in.for_rows(weights) + row * m.d_in;
            if (number == begin) ask_for(weights, (end - begin < ROWS_AHEAD ? end - begin : ROWS_AHEAD) * m.d_in);
            if (number + ROWS_AHEAD < end) ask_for(weights + ROWS_AHEAD * m.d_in, m.d_in);
            if (size == 1) dense_output<1>(weights, x, m.d_in, low + row * rank + number, rank);
            else dense_output<ROWS>(weights, x, m.d_in, low + row * rank + number, rank);
        }
}

static void lower_part(const gs_matrix& m, Inputs& in, const int64_t* adapters, int64_t begin, int64_t end, float* low) {
    if (m.delta->dtype == GS_BFLOAT16) {
        order(in, m.d_in);
        lower_rows<bf16>(m, in, adapters, begin, end, low);
    } else lower_rows<float>(m, in, adapters, begin, end, low);
}

// Ask for the beginning of what some blocks need of B, that of the first row.
static inline void ask_for_outputs(const gs_matrix& m, const int64_t* adapters, int64_t first, int64_t last) {
    const int64_t adapter = adapter_of(adapters, 0), begin = first * GS_QUANT_BLOCK;
    if (!m.delta || adapter < 0) return;
    const int64_t size = delta_bytes(*m.delta, (last_output(m, last) - begin) * m.delta->rank);
    const int64_t at = delta_bytes(*m.delta, (adapter * m.d_out + begin) * m.delta->rank);
    ask_for((const char*)m.delta->lora_b + at, size < DELTA_AHEAD ? size : DELTA_AHEAD);
}

// Outputs of some blocks of all rows.
struct Blocks {
    int64_t n_rows, first, last;
};

// Sums of the lanes of W vectors, in one vector: first of each four of them, then of these fours. All in one order.
constexpr int FOUR = W == 1 ? 1 : 4;
#if defined(__AVX512F__)
static inline vf fold(vf a, vf b) { return _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b); }
static inline vf fold_halves(vf a, vf b) { return _mm512_shuffle_f32x4(a, b, 0x88) + _mm512_shuffle_f32x4(a, b, 0xdd); }
static inline vf sums_of_four(const vf* x) { return fold(fold(x[0], x[2]), fold(x[1], x[3])); }
static inline vf join_fours(const vf* x) { return fold_halves(fold_halves(x[0], x[1]), fold_halves(x[2], x[3])); }
#elif defined(__AVX2__)
static inline vf sums_of_four(const vf* x) {
    return _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
}
static inline vf join_fours(const vf* x) {
    return _mm256_permute2f128_ps(x[0], x[1], 0x20) + _mm256_permute2f128_ps(x[0], x[1], 0x31);
}
#else
static inline vf sums_of_four(const vf* x) { return x[0]; }
static inline vf join_fours(const vf* x) { return x[0]; }
#endif

// Products of n <= W rows of B with one vector, lane by lane; what is in lanes from n on means nothing.
template <class T>
static inline vf raise_some(const T* weights, const float* low, int64_t rank, int64_t n) {
    vf fours[W / FOUR];
#pragma GCC unroll 4
    for (int64_t four = 0; four < W / FOUR; four++) {
        const T* rows[FOUR];
        vf sums[FOUR];
#pragma GCC unroll 4
        for (int64_t j = 0; j < FOUR; j++) {
            const int64_t output = four * FOUR + j;
            rows[j] = weights + (output < n ? output : n - 1) * rank;
            sums[j] = vzero();
        }
        auto piece = [&](int64_t i, int64_t size) {
            vf x = load(low + i, size);
#pragma GCC unroll 4
            for (int64_t j = 0; j < FOUR; j++) sums[j] = vfma(load(rows[j] + i, size), x, sums[j]);
        };
        over(rank, [&](int64_t i) { piece(i, W); }, piece);
        fours[four] = sums_of_four(sums);
    }
    return join_fours(fours);
}

// Add scale * B low of the row's adapter to one row's outputs begin to end.
template <class T>
static void raise_row(const gs_matrix& m, int64_t adapter, const float* low, int64_t begin, int64_t end, float* y) {
    const gs_delta& delta = *m.delta;
    const float scale = delta.scale_dtype == GS_BFLOAT16 ? first_lane(load((const bf16*)delta.scale + adapter, 1))
                                                         : ((const float*)delta.scale)[adapter];
    const T* weights = (const T*)delta.lora_b + (adapter * m.d_out + begin) * delta.rank;
    for (int64_t n; begin < end; begin += n, weights += n * delta.rank) {
        n = end - begin < W ? end - begin : W;
        ask_for(weights + DELTA_AHEAD / sizeof(T), W * delta.rank);
        vf raised = raise_some(weights, low, delta.rank, n);
        store(y + begin, vfma(vset(scale), raised, load(y + begin, n)), n);
    }
}

// In runs of outputs, so that rows of one adapter find their part of B in the first cache.
static void add_delta(const gs_matrix& m, const int64_t* adapters, const float* low, const Blocks& blocks, float* y) {
    constexpr int64_t RUN = 4;
    for (int64_t block = blocks.first; block < blocks.last; block += RUN)
        for (int64_t row = 0; row < blocks.n_rows; row++) {
            const int64_t adapter = adapter_of(adapters, row), begin = block * GS_QUANT_BLOCK;
            const int64_t end = last_output(m, block + RUN < blocks.last ? block + RUN : blocks.last);
            const float* from = low + row * m.delta->rank;
            if (adapter < 0) continue;
            if (m.delta->dtype == GS_BFLOAT16) raise_row<bf16>(m, adapter, from, begin, end, y + row * m.d_out);
            else raise_row<float>(m, adapter, from, begin, end, y + row * m.d_out);
        }
}
