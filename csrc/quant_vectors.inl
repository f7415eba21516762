// Products of a strip with tiles of rows by vectors. Included by quant_gemm.inl.

// Weights of one byte each: vector 2 v holds the low halves of packed vector v, 2 v + 1 the high ones.
static inline void unpack_halves(const uint8_t* from, uint8_t* to, int64_t n_vectors) {
    for (int64_t v = 0; v < n_vectors; v++, from += 64, to += 128)
        for (int64_t i = 0; i < 64; i += W * 4) {
            vi both = iload(from + i);
            istore(to + i, low_halves(both));
            istore(to + 64 + i, high_halves(both));
        }
}

// One part of a block of outputs for a tile of R rows, to out[r * 16]; quant_tile's sums in its order.
template <int BITS, int R>
static void gemm_part(const GemmStrip& strip, int64_t block, int64_t part, const int8_t* x, const float* scales,
                      const int32_t* corrections, float* out) {
    const uint8_t* w = strip.weights + block * strip.n_units * UNIT_VECTORS * 64 + part * W * 4;
    const int64_t first_group = block * strip.n_groups * GS_QUANT_BLOCK + part * W;
    const uint8_t* zeros = strip.zeros ? strip.zeros + first_group : nullptr;
    const float* factors = strip.factors + first_group;
    vf total[R], inner[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) total[r] = inner[r] = vzero();
    int64_t left = strip.group_units;
    for (int64_t unit = 1; unit <= strip.n_units; unit++) {
        vi dots[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
            dots[r] = zeros ? iproduct(iwiden(zeros), corrections[r]) : iset(corrections[r]);
#pragma GCC unroll 8
        for (int64_t v = 0; v < UNIT_VECTORS; v++) {
            vi weight = iload(w + v * 64);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                const int8_t* four = x + r * GS_QUANT_UNIT + v * 4;
                dots[r] = BITS == 4 ? idot_small(dots[r], weight, four) : idot(dots[r], weight, four);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) inner[r] = vfma(ifloat(dots[r]), vset(scales[r]), inner[r]);
        w += UNIT_VECTORS * 64, x += R * GS_QUANT_UNIT, scales += R, corrections += R;
        if (--left && unit < strip.n_units) continue;
        vf factor = vload(factors);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            total[r] = vfma(inner[r], factor, total[r]);
            inner[r] = vzero();
        }
        left = strip.group_units, factors += GS_QUANT_BLOCK, zeros = zeros ? zeros + GS_QUANT_BLOCK : nullptr;
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) vstore(out + r * GS_QUANT_BLOCK, total[r]);
}

struct VectorGemm {
    static bool takes_packed(const gs_quant_call& call) { return call.bits == 8; }
    static void unpack(const gs_quant_call& call, GemmStrip& strip, const uint8_t* packed, uint8_t* to) {
        unpack_halves(packed, to, strip.n_blocks * strip.n_units * call.bits);
    }

    // Sums of the tile of `size` rows that begins at `first`: out[blocks, GEMM_ROWS, 16].
    template <int BITS>
    void multiply(const GemmStrip& strip, const QuantRows& rows, int64_t first, int64_t size, float* out) {
        const int64_t at = first * rows.n_units;
        auto product = size == 1 ? gemm_part<BITS, 1> : size == 2 ? gemm_part<BITS, 2> : size == 4 ? gemm_part<BITS, 4>
                                                                                       : gemm_part<BITS, QUANT_ROWS>;
        for (int64_t block = 0; block < strip.n_blocks; block++)
            for (int64_t part = 0; part < PARTS; part++)
                product(strip, block, part, rows.values + at * GS_QUANT_UNIT, rows.scales + at, rows.corrections + at,
                        out + block * GEMM_ROWS * GS_QUANT_BLOCK + part * W);
    }
};
