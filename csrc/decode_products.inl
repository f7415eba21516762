// Products of a few rows with matrices of every form, block by block of 16 outputs. Included by decode.inl.

// Rows of inputs, float32, the same in the order of bfloat16's pairs, and rounded to 8 bits for the form of matrix
// they were last rounded for.
struct Inputs {
    float *x, *ordered;  // [n_rows, d_in]
    void* rounded;
    int64_t n_rows;
    QuantRows rows;
    int32_t middle;  // 0: not rounded yet
    bool is_ordered;

    // What is in x is new.
    void renew() { middle = 0, is_ordered = false; }
    const float* for_rows(const float*) const { return x; }
    const float* for_rows(const bf16*) const { return ordered; }
};

// One output for R rows of inputs, from a row of weights of 16 or 32 bits. It is the sum of four chains and what is left
// over, in an order that depends on nothing else. Two rows of weights at a time would be two streams out of memory, which
// were a quarter slower than one; and asking for what comes next is left to the processor, which does it better.
template <int R, class T>
static inline void dense_output(const T* weights, const float* x, int64_t d_in, float* y, int64_t stride) {
    vf sums[R][4], w[4];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int c = 0; c < 4; c++) sums[r][c] = vzero();
    int64_t i = 0;
    for (; i + 4 * W <= d_in; i += 4 * W) {
        load_two(weights + i, &w[0], &w[1]);
        load_two(weights + i + 2 * W, &w[2], &w[3]);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int c = 0; c < 4; c++) sums[r][c] = vfma(w[c], vload(x + r * d_in + i + c * W), sums[r][c]);
    }
    if (i + 2 * W <= d_in) {
        load_two(weights + i, &w[0], &w[1]);
        for (int r = 0; r < R; r++)
            for (int c = 0; c < 2; c++) sums[r][c] = vfma(w[c], vload(x + r * d_in + i + c * W), sums[r][c]);
        i += 2 * W;
    }
    for (int64_t n; i < d_in; i += W) {
        n = d_in - i < W ? d_in - i : W;
        for (int r = 0; r < R; r++) sums[r][0] = vfma(load(weights + i, n), load(x + r * d_in + i, n), sums[r][0]);
    }
    for (int r = 0; r < R; r++) y[r * stride] = hsum((sums[r][0] + sums[r][1]) + (sums[r][2] + sums[r][3]));
}

template <class T>
static void dense_block(const gs_matrix& m, const Inputs& in, int64_t block, float* y) {
    constexpr int ROWS = W == 16 ? 4 : 2;  // what fits the registers
    const int64_t begin = block * GS_QUANT_BLOCK, end = begin + GS_QUANT_BLOCK < m.d_out ? begin + GS_QUANT_BLOCK : m.d_out;
    for (int64_t output = begin; output < end; output++) {
        const T* weights = (const T*)m.values + output * m.d_in;
        const float* x = in.for_rows(weights);
        int64_t row = 0;
        for (; row + ROWS <= in.n_rows; row += ROWS)
            dense_output<ROWS>(weights, x + row * m.d_in, m.d_in, y + row * m.d_out + output, m.d_out);
        for (; row < in.n_rows; row++)
            dense_output<1>(weights, x + row * m.d_in, m.d_in, y + row * m.d_out + output, m.d_out);
    }
}

template <int BITS>
static void quant_block(const gs_quant_call& call, const Inputs& in, int64_t block, float* y) {
    for (int64_t first = 0, size; first < in.n_rows; first += size) {
        size = tile_rows(first, in.n_rows);
        if (size == 1) quant_tile<BITS, 1>(&call, in.rows, first, block, y);
        else if (size == 2) quant_tile<BITS, 2>(&call, in.rows, first, block, y);
        else if (size == 4) quant_tile<BITS, 4>(&call, in.rows, first, block, y);
        else quant_tile<BITS, QUANT_ROWS>(&call, in.rows, first, block, y);
    }
}

static inline int64_t n_blocks(const gs_matrix& m) { return !m.values ? 0 : (m.d_out + GS_QUANT_BLOCK - 1) / GS_QUANT_BLOCK; }

// Where the outputs of the blocks before `block` end.
static inline int64_t last_output(const gs_matrix& m, int64_t block) {
    return block * GS_QUANT_BLOCK < m.d_out ? block * GS_QUANT_BLOCK : m.d_out;
}

// The fewest blocks worth a turn of their own: some 64 KB, a few microseconds.
static inline int64_t least_blocks(const gs_matrix& m) { return 1 + 65536 / (GS_QUANT_BLOCK * m.d_in * m.bits / 8 + 1); }

static inline gs_quant_call as_quant_call(const gs_matrix& m, int64_t n_rows) {
    return gs_quant_call{nullptr, nullptr, (const uint8_t*)m.values, m.scales, m.zeros, nullptr, n_rows,
                         m.d_in,  m.d_out, m.group_units,            m.bits,   GS_FLOAT32, m.scale_dtype};
}

// Bring the inputs into the order of bfloat16's pairs, unless they are in it.
static void order(Inputs& in, int64_t d_in) {
    if (in.is_ordered) return;
    for (int64_t row = 0; row < in.n_rows; row++)
        order_pairs((const bf16*)nullptr, in.x + row * d_in, in.ordered + row * d_in, d_in, false);
    in.is_ordered = true;
}

// Bring the inputs into the form this matrix needs, unless they are in it.
static void prepare(const gs_matrix& m, Inputs& in) {
    if (!m.values || m.bits == 32) return;
    if (m.bits == 16) return order(in, m.d_in);
    int32_t middle = m.zeros ? 1 : m.bits == 4 ? 8 : 128;
    if (in.middle == middle) return;
    gs_quant_call call = as_quant_call(m, in.n_rows);
    call.scratch = in.rounded;
    in.rows = quant_rows(&call);
    in.middle = middle;
    round_rows(in.x, in.rows, m.d_in, middle);
}

// Blocks first to last, written to y [n_rows, d_out].
static void take_blocks(const gs_matrix& m, const Inputs& in, int64_t first, int64_t last, float* y) {
    gs_quant_call call = as_quant_call(m, in.n_rows);
    for (int64_t block = first; block < last; block++) {
        if (m.bits == 4) quant_block<4>(call, in, block, y);
        else if (m.bits == 8) quant_block<8>(call, in, block, y);
        else if (m.bits == 16) dense_block<bf16>(m, in, block, y);
        else dense_block<float>(m, in, block, y);
    }
}

// Row `row` of a matrix times `factor`, as float32.
static void look_up(const gs_matrix& m, int64_t row, float factor, float* out) {
    auto widen_row = [&](auto* weights) {
        auto piece = [&](int64_t i, int64_t n) { store(out + i, load(weights + i, n) * vset(factor), n); };
        over(m.d_in, [&](int64_t i) { piece(i, W); }, piece);
    };
    if (m.bits == 16) return widen_row((const bf16*)m.values + row * m.d_in);
    if (m.bits == 32) return widen_row((const float*)m.values + row * m.d_in);
    const int64_t n_units = (m.d_in + GS_QUANT_UNIT - 1) / GS_QUANT_UNIT, step = GS_QUANT_UNIT / m.bits;
    const int64_t n_groups = (n_units + m.group_units - 1) / m.group_units;
    const int64_t block = row / GS_QUANT_BLOCK, lane = row % GS_QUANT_BLOCK;
    const uint8_t* lanes = (const uint8_t*)m.values + block * n_units * 64 * m.bits + lane * 4;
    float scale = 0.0f, scales[W];
    int32_t zero = m.bits == 4 ? 8 : 128;
    for (int64_t i = 0; i < m.d_in; i++) {
        if (i % (GS_QUANT_UNIT * m.group_units) == 0) {
            int64_t group = i / (GS_QUANT_UNIT * m.group_units), at = (block * n_groups + group) * GS_QUANT_BLOCK + lane;
            vstore(scales, load_scales(m.scales, at - lane % W, m.scale_dtype) * vset(factor));
            scale = scales[lane % W];
            if (m.zeros) zero = m.zeros[at];
        }
        int32_t value = lanes[i / step * 64 + i % 4];
        if (m.bits == 4) value = i % 8 < 4 ? value & 15 : value >> 4;
        out[i] = (float)(value - zero) * scale;
    }
}
