// Activations in 8 bits. Included by quant.inl.

// The rows of a call, rounded. They lie in tiles that are computed together: `most` rows each, the rest in
// tiles of powers of two. Within a tile, [units, rows, 32] values, [units, rows] scales and corrections: what
// to add to a unit's sum of products because stored weights are not the numbers they mean.
struct QuantRows {
    int8_t* values;
    float* scales;
    int32_t* corrections;
    int64_t n_rows, n_units, most;
};

static inline int64_t quant_rows_bytes(const gs_quant_call* call) {
    return call->n_rows * ((call->d_in + GS_QUANT_UNIT - 1) / GS_QUANT_UNIT) * (GS_QUANT_UNIT + 8);
}

// The rows of a call in memory of quant_rows_bytes.
static inline QuantRows quant_rows(const gs_quant_call* call, void* memory, int64_t most) {
    int64_t n_units = (call->d_in + GS_QUANT_UNIT - 1) / GS_QUANT_UNIT, all = call->n_rows * n_units;
    int8_t* values = (int8_t*)memory;
    float* scales = (float*)(values + all * GS_QUANT_UNIT);
    return QuantRows{values, scales, (int32_t*)(scales + all), call->n_rows, n_units, most};
}

// Those of a product of few rows, in the call's own scratch.
static inline QuantRows quant_rows(const gs_quant_call* call) { return quant_rows(call, call->scratch, QUANT_ROWS); }

// What each stored weight of a unit is more than it means, where that is the same for all.
static inline int32_t quant_middle(const gs_quant_call& call) { return call.zeros ? 1 : call.bits == 4 ? 8 : 128; }

// How many rows the tile that begins at `first` has.
static inline int64_t tile_rows(int64_t first, int64_t n_rows, int64_t most = QUANT_ROWS) {
    int64_t size = most;
    while (size > n_rows - first) size /= 2;
    return size;
}

static inline vf vabs(vf x) { return vmax(x, vzero() - x); }

// Round 32 numbers to multiples of their largest magnitude / 127, as quantized.quantize_activations does;
// return that step, NaN if one of them is not finite, and their sum in steps.
template <class T>
static inline float round_unit(const T* x, int64_t n, int8_t* values, int32_t* sum) {
    constexpr int64_t PIECES = GS_QUANT_UNIT / W;
    vf pieces[PIECES], largest = vzero(), none = vzero();
    for (int64_t i = 0; i < PIECES; i++) {
        int64_t left = n - i * W;
        pieces[i] = left >= W ? vload(x + i * W) : left > 0 ? load_n(x + i * W, left) : vzero();
        largest = vmax(largest, vabs(pieces[i]));
        none = vfma(pieces[i], vzero(), none);
    }
    float most = hmax(largest), inverse = 127.0f / most;
    bool is_finite = hsum(none) == 0.0f;
    if (!is_finite || !(inverse < INFINITY)) {
        memset(values, 0, GS_QUANT_UNIT);
        *sum = 0;
        return is_finite ? 0.0f : NAN;
    }
    vf total = vzero();
    for (int64_t i = 0; i < PIECES; i++) {
        vf rounded = vround(pieces[i] * vset(inverse));
        store_bytes(values + i * W, rounded);
        total += rounded;
    }
    *sum = (int32_t)hsum(total);
    return most * (1.0f / 127.0f);
}

template <class T>
static void round_rows(const T* x, const QuantRows& rows, int64_t d_in, int32_t middle) {
    share_out(rows.n_rows, 1 + 65536 / (d_in + 1), [&](int64_t begin, int64_t end, int32_t) {
        int64_t first = 0;
        for (int64_t row = begin; row < end; row++) {
            int64_t size;
            while (first + (size = tile_rows(first, rows.n_rows, rows.most)) <= row) first += size;
            int64_t at = first * rows.n_units + (row - first);
            for (int64_t unit = 0; unit < rows.n_units; unit++, at += size) {
                int64_t i = unit * GS_QUANT_UNIT;
                int32_t sum;
                rows.scales[at] = round_unit(x + row * d_in + i, d_in - i, rows.values + at * GS_QUANT_UNIT, &sum);
                rows.corrections[at] = -middle * sum;
            }
        }
    });
}
