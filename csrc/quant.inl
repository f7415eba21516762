// y = x W^T for W in 4 or 8 bits, x rounded to 8 bits per 32 inputs. Included by unit.inl.
//
// Products of bytes are summed in integers per unit of 32 inputs, units with the activations' scales into a
// group, groups with the weights' scales into the output: one order for every number of rows and threads.
#include "quant_dot.inl"
#include "quant_rows.inl"
#include "quant_pack.inl"

constexpr int64_t QUANT_AHEAD = 2048;         // bytes between what is read and what is asked for
constexpr int64_t PARTS = GS_QUANT_BLOCK / W;  // vectors of sums that make up a block

static inline vf load_scales(const void* scales, int64_t at, int32_t dtype) {
    if (dtype == GS_FLOAT32) return vload((const float*)scales + at);
    return dtype == GS_BFLOAT16 ? vload((const bf16*)scales + at) : vload((const f16*)scales + at);
}

// Sums of one unit of `part` of a block for R rows, added to `inner` times the rows' scales.
template <int BITS, int R>
static inline void add_unit(const uint8_t* weights, const int8_t* x, const float* scales, const int32_t* corrections,
                            const uint8_t* zeros, vf* inner) {
    vi sums[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
        sums[r] = zeros ? iproduct(iwiden(zeros), corrections[r]) : iset(corrections[r]);
#pragma GCC unroll 8
    for (int v = 0; v < BITS; v++) {
        vi w = iload(weights + v * 64);
        if (BITS == 4) {
            vi low = low_halves(w), high = high_halves(w);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                const int8_t* eight = x + r * GS_QUANT_UNIT + v * 8;
                sums[r] = idot_small(idot_small(sums[r], low, eight), high, eight + 4);
            }
        } else {
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) sums[r] = idot(sums[r], w, x + r * GS_QUANT_UNIT + v * 4);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) inner[r] = vfma(ifloat(sums[r]), vset(scales[r]), inner[r]);
}

// One part of a block of outputs for a tile of R rows, written to out[r * stride].
template <int BITS, int R, class T>
static void quant_tile(const gs_quant_call* call, const QuantRows& rows, int64_t first, int64_t block, T* y) {
    const int64_t unit_bytes = 64 * BITS, n_units = rows.n_units, n_groups = (n_units + call->group_units - 1) / call->group_units;
    const uint8_t* weights = call->values + block * n_units * unit_bytes;
    const int8_t* x = rows.values + first * n_units * GS_QUANT_UNIT;
    const float* scales = rows.scales + first * n_units;
    const int32_t* corrections = rows.corrections + first * n_units;
    vf total[PARTS][R];
    for (int64_t part = 0; part < PARTS; part++)
        for (int r = 0; r < R; r++) total[part][r] = vzero();
    for (int64_t group = 0, unit = 0; group < n_groups; group++) {
        const int64_t stop = unit + call->group_units < n_units ? unit + call->group_units : n_units;
        for (int64_t part = 0; part < PARTS; part++) {
            const int64_t at = (block * n_groups + group) * GS_QUANT_BLOCK + part * W;
            const uint8_t* zeros = call->zeros ? call->zeros + at : nullptr;
            vf inner[R];
            for (int r = 0; r < R; r++) inner[r] = vzero();
            for (int64_t u = unit; u < stop; u++) {
                const uint8_t* w = weights + u * unit_bytes + part * W * 4;
                if (part == 0)
                    for (int64_t line = 0; line < BITS; line++) __builtin_prefetch(w + QUANT_AHEAD + line * 64);
                add_unit<BITS, R>(w, x + u * R * GS_QUANT_UNIT, scales + u * R, corrections + u * R, zeros, inner);
            }
            vf factor = load_scales(call->scales, at, call->scale_dtype);
            for (int r = 0; r < R; r++) total[part][r] = vfma(inner[r], factor, total[part][r]);
        }
        unit = stop;
    }
    for (int r = 0; r < R; r++)
        for (int64_t part = 0; part < PARTS; part++) {
            int64_t output = block * GS_QUANT_BLOCK + part * W, left = call->d_out - output;
            if (left > 0) store(y + (first + r) * call->d_out + output, total[part][r], left < W ? left : W);
        }
}

#include "quant_gemm.inl"

// y for rows that have been rounded.
template <int BITS, class T>
static void quant_product(const gs_quant_call* call, const QuantRows& rows) {
    if (call->n_rows >= GEMM_LEAST) return gemm<BITS, T>(*call, rows);
    T* y = (T*)call->y;
    const int64_t n_blocks = (call->d_out + GS_QUANT_BLOCK - 1) / GS_QUANT_BLOCK;
    // Turns of some 256 KB of products, so that a thread that is held up holds up nobody else.
    const int64_t turn = 1 + 262144 / (call->n_rows * rows.n_units * 64 * BITS);
    take_turns((n_blocks + turn - 1) / turn, [&](int64_t item, int32_t) {
        const int64_t end = (item + 1) * turn < n_blocks ? (item + 1) * turn : n_blocks;
        for (int64_t block = item * turn; block < end; block++)
            for (int64_t first = 0, size; first < call->n_rows; first += size) {
                size = tile_rows(first, call->n_rows);
                if (size == 1) quant_tile<BITS, 1>(call, rows, first, block, y);
                else if (size == 2) quant_tile<BITS, 2>(call, rows, first, block, y);
                else if (size == 4) quant_tile<BITS, 4>(call, rows, first, block, y);
                else quant_tile<BITS, QUANT_ROWS>(call, rows, first, block, y);
            }
    });
}

template <class T>
static void quant_products(const gs_quant_call* calls, int32_t n) {
    SharedScratch shared(calls->scratch ? 0 : quant_rows_bytes(calls));
    const QuantRows rows = quant_rows(calls, calls->scratch ? calls->scratch : shared.data, gemm_rows(calls->n_rows));
    for (int32_t i = 0; i < n; i++) {
        if (i == 0 || quant_middle(calls[i]) != quant_middle(calls[i - 1]))
            round_rows((const T*)calls->x, rows, calls->d_in, quant_middle(calls[i]));
        calls[i].bits == 4 ? quant_product<4, T>(calls + i, rows) : quant_product<8, T>(calls + i, rows);
    }
}

static void quantized_linears(const gs_quant_call* calls, int32_t n) {
    if (n <= 0 || calls->n_rows <= 0) return;
    calls->dtype == GS_BFLOAT16 ? quant_products<bf16>(calls, n) : quant_products<float>(calls, n);
}

static void quantized_linear(const gs_quant_call* call) { quantized_linears(call, 1); }

#include "quant_feed.inl"
