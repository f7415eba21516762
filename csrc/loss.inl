// Loss over the vocabulary and its gradient, written over the logits. Included by unit.inl.

// The largest logit. A NaN may hide here, but it shows in the sum of exponentials.
template <class T>
static inline float largest(const T* row, int64_t width) {
    vf tops[4];
    for (int j = 0; j < 4; j++) tops[j] = vset(-INFINITY);
    int64_t i = 0;
    for (; i + 4 * W <= width; i += 4 * W)
        for (int j = 0; j < 4; j++) tops[j] = vmax(tops[j], vload(row + i + j * W));
    for (; i < width; i += W) {
        int64_t n = width - i < W ? width - i : W;
        tops[0] = vmax(tops[0], keep_n(load(row + i, n), n, -INFINITY));
    }
    return hmax(vmax(vmax(tops[0], tops[1]), vmax(tops[2], tops[3])));
}

// Write exp(capped - top) times the slope of the cap to `terms`; return the sum of the exponentials.
template <bool is_capped, class T>
static inline float exponentials(const T* row, float* terms, int64_t width, float top, float cap) {
    vf sums[2] = {vzero(), vzero()}, shift = vset(top), inverse = vset(1.0f / cap), wide = vset(cap);
    auto piece = [&](int64_t i, int64_t n, int which) {
        vf x = load(row + i, n), slope = vset(1.0f);
        if (is_capped) {
            x = vtanh(x * inverse, &slope) * wide;
        }
        vf e = vexp(x - shift);
        if (n < W) e = keep_n(e, n, 0.0f);
        sums[which] = sums[which] + e;
        store(terms + i, e * slope, n);
    };
    over(width, [&](int64_t i) { piece(i, W, (i / W) & 1); }, [&](int64_t i, int64_t n) { piece(i, n, 0); });
    return hsum(sums[0] + sums[1]);
}

template <class T>
static double loss_of_row(T* row, float* terms, int64_t target, int64_t width, float cap, float z_weight) {
    const int64_t one = 1;
    vf chosen = load(row + target, one), slope = vset(1.0f), top = vset(largest(row, width));
    float total;
    if (cap > 0.0f) {
        vf inverse = vset(1.0f / cap), wide = vset(cap);
        chosen = vtanh(chosen * inverse, &slope) * wide;
        top = vtanh(top * inverse) * wide;
        total = exponentials<true>(row, terms, width, first_lane(top), cap);
    } else {
        total = exponentials<false>(row, terms, width, first_lane(top), 1.0f);
    }
    float normalizer = first_lane(top) + logf(total);
    vf by = vset((1.0f + 2.0f * z_weight * normalizer) / total);
    vf at_target = load(terms + target, one) * by - slope;
    auto piece = [&](int64_t i, int64_t n) { store(row + i, load(terms + i, n) * by, n); };
    over(width, [&](int64_t i) { piece(i, W); }, piece);
    store(row + target, at_target, one);
    return (double)normalizer - first_lane(chosen) + (double)(z_weight * normalizer) * normalizer;
}

static void loss_and_gradient(void* logits, const int64_t* targets, double* row_loss, float* scratch, int64_t n_rows,
                              int64_t vocab_size, float softcap, float z_weight, int32_t dtype) {
    share_out(n_rows, 1 + 4096 / (vocab_size + 1), [&](int64_t begin, int64_t end, int32_t thread) {
        for (int64_t row = begin; row < end; row++) {
            int64_t at = row * vocab_size;
            if (dtype == GS_BFLOAT16)
                row_loss[row] = loss_of_row((bf16*)logits + at, scratch + thread * vocab_size, targets[row],
                                            vocab_size, softcap, z_weight);
            else
                row_loss[row] = loss_of_row((float*)logits + at, (float*)logits + at, targets[row], vocab_size,
                                            softcap, z_weight);
        }
    });
}
