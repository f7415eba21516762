// A whole gated layer by matrices in few bits: what lies between its products is never stored but rounded. Included
// by quant.inl.

// One unit of the gated products of a tile, from the sums of a strip of each, to the rows of the next product.
template <class T>
static void feed_unit(const float* gate, const float* up, int64_t n, int64_t r, int8_t* values, float* scale,
                      int32_t* sum) {
    alignas(64) float wide[GS_QUANT_UNIT] = {};
    for (int64_t i = 0; i < n; i += W) {
        const int64_t at = (i / GS_QUANT_BLOCK * GEMM_ROWS + r) * GS_QUANT_BLOCK + i % GS_QUANT_BLOCK;
        vf x = as_held((const T*)nullptr, vload(gate + at)), bend, share = gelu_share(x, &bend);
        vf product = as_held((const T*)nullptr, x * share) * as_held((const T*)nullptr, vload(up + at));
        vstore(wide + i, as_held((const T*)nullptr, product));
    }
    *scale = round_unit(wide, n, values, sum);
}

// The gated products of all rows, rounded: strip s of gate and up makes unit s.
template <int BITS, class T>
static void feed_forward(const gs_quant_call* calls, const QuantRows& rows, const QuantRows& made) {
    const gs_quant_call &gate = calls[0], &up = calls[1];
    const int32_t middle = quant_middle(calls[2]);
    take_turns(GemmSizes(gate).n_strips, [&](int64_t unit, int32_t) {
        static thread_local Scratch scratch;
        Pieces counted = {nullptr, 0};
        GemmScratch(counted, gate), GemmScratch(counted, up);
        Pieces pieces = {scratch.at_least(counted.used), 0};
        const GemmScratch first_scratch(pieces, gate), second_scratch(pieces, up);
        const GemmStrip one = gemm_strip(gate, unit, first_scratch), other = gemm_strip(up, unit, second_scratch);
        const int64_t n_tiles = rows.n_rows / GEMM_ROWS + 1, left = gate.d_out - unit * GS_QUANT_UNIT;
        GemmAhead ahead(gate, unit + gs_max_threads(), n_tiles), behind(up, unit + gs_max_threads(), n_tiles);
        alignas(64) float sums[2][GEMM_BLOCKS * GEMM_ROWS * GS_QUANT_BLOCK];
        Gemm products;
        for (int64_t first = 0, size; first < rows.n_rows; first += size) {
            size = tile_rows(first, rows.n_rows, rows.most);
            ahead.step(), behind.step();
            products.template multiply<BITS>(one, rows, first, size, sums[0]);
            products.template multiply<BITS>(other, rows, first, size, sums[1]);
            for (int64_t r = 0, at = first * made.n_units + unit * size; r < size; r++, at++) {
                int32_t sum;
                feed_unit<T>(sums[0], sums[1], left < GS_QUANT_UNIT ? left : GS_QUANT_UNIT, r,
                             made.values + at * GS_QUANT_UNIT, made.scales + at, &sum);
                made.corrections[at] = -middle * sum;
            }
        }
    });
}

template <class T>
static void feed_forward(const gs_quant_call* calls) {
    const gs_quant_call &gate = calls[0], &down = calls[2];
    const int64_t own = (quant_rows_bytes(&gate) + 63) / 64 * 64;
    SharedScratch shared(own + quant_rows_bytes(&down));
    const int64_t most = gemm_rows(gate.n_rows);
    const QuantRows rows = quant_rows(&gate, shared.data, most), made = quant_rows(&down, shared.data + own, most);
    round_rows((const T*)gate.x, rows, gate.d_in, quant_middle(gate));
    gate.bits == 4 ? feed_forward<4, T>(calls, rows, made) : feed_forward<8, T>(calls, rows, made);
    down.bits == 4 ? quant_product<4, T>(&down, made) : quant_product<8, T>(&down, made);
}

static void quantized_feed_forward(const gs_quant_call* calls) {
    static_assert(GEMM_BLOCKS * GS_QUANT_BLOCK == GS_QUANT_UNIT, "a strip of outputs is a unit of the next product");
    if (calls->n_rows <= 0) return;
    calls->dtype == GS_BFLOAT16 ? feed_forward<bf16>(calls) : feed_forward<float>(calls);
}
