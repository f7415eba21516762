// Scores to weights: the soft cap, the mask and the softmax of one tile, keys down, queries across.

// Exponentials of weights and the tanh of scores. For float32 as exact as the format allows.
template <class T>
struct Curves {
    static constexpr float SCALE = 1.0f;  // of exponents: exp(x) is power(SCALE * x)
    static inline vf power(vf x) { return vexp(x); }
    static inline vf tanh(vf x) { return vtanh(x); }
};

#if defined(__AVX512F__)
static inline vf inverse(vf x) {
    vf guess = _mm512_rcp14_ps(x);
    return guess * vfma(vset(-1.0f) * x, guess, vset(2.0f));
}
#elif defined(__AVX2__)
static inline vf inverse(vf x) {
    vf guess = _mm256_rcp_ps(x);
    return guess * vfma(vset(-1.0f) * x, guess, vset(2.0f));
}
#else
static inline vf inverse(vf x) { return vset(1.0f) / x; }
#endif

// For bfloat16, whose own steps are 4e-3, to about 3e-6 and 6e-6 of the value. Both are minimax fits of ours.
template <>
struct Curves<bf16> {
    static constexpr float SCALE = 1.44269504f;
    static inline vf power(vf x) {
        x = vmin(vset(130.0f), vmax(vset(-150.0f), x));
        vf n = vround(x), r = x - n;
        vf p = vfma(vset(9.570100e-3f), r, vset(5.591786e-2f));
        p = vfma(p, r, vset(2.4024745e-1f));
        p = vfma(p, r, vset(6.9312181e-1f));
        p = vfma(p, r, vset(9.9999926e-1f));
        return vpow2(n, p);
    }
    static inline vf tanh(vf x) {
        x = vmin(vset(9.0f), vmax(vset(-9.0f), x));
        vf u = x * x;
        vf p = vfma(vset(3.0232538e-6f), u, vset(2.0667006e-3f)), q = vfma(vset(1.2037655e-4f), u, vset(2.0067525e-2f));
        p = vfma(p, u, vset(1.2058288e-1f));
        q = vfma(q, u, vset(4.5387852e-1f));
        p = vfma(p, u, vset(9.9999410e-1f));
        q = vfma(q, u, vset(1.0f));
        return x * p * inverse(q);
    }
};

// x where low <= row <= high, `other` elsewhere.
#if defined(__AVX512F__)
static inline vf keep(vf x, vf row, vf low, vf high, vf other) {
    __mmask16 seen = _mm512_cmp_ps_mask(low, row, _CMP_LE_OQ) & _mm512_cmp_ps_mask(row, high, _CMP_LE_OQ);
    return _mm512_mask_blend_ps(seen, other, x);
}
#elif defined(__AVX2__)
static inline vf keep(vf x, vf row, vf low, vf high, vf other) {
    __m256 seen = _mm256_and_ps(_mm256_cmp_ps(low, row, _CMP_LE_OQ), _mm256_cmp_ps(row, high, _CMP_LE_OQ));
    return _mm256_blendv_ps(other, x, seen);
}
#else
static inline vf keep(vf x, vf row, vf low, vf high, vf other) { return low <= row && row <= high ? x : other; }
#endif

// The rows (keys) of a tile that some query of the panel sees, and whether some sees only part of them.
struct Seen {
    int64_t begin, end;
    bool is_partial;
};

// Which keys each query of a panel sees. Places past the last query see none, like tokens whose first > t.
struct Panel {
    int64_t n_lanes;
    int64_t first[TILE], last[TILE];  // an empty span where nothing is seen
    int64_t least_first, most_first, least_last, most_last;

    // The panel's lanes are (token, head) pairs in that order, from token `token` and head `lane` on.
    void set(const int32_t* firsts, int64_t chunk, int64_t lane, int64_t n_lanes_in_chunk, int64_t n_groups) {
        n_lanes = n_lanes_in_chunk - lane < TILE ? n_lanes_in_chunk - lane : TILE;
        least_first = INT64_MAX, most_first = 0, least_last = INT64_MAX, most_last = -1;
        for (int64_t i = 0; i < TILE; i++) {
            int64_t token = chunk + (lane + i) / n_groups;
            bool sees = i < n_lanes && firsts[token] <= token;
            first[i] = !sees ? INT64_MAX : firsts[token] < 0 ? 0 : firsts[token];
            last[i] = sees ? token : -1;
            if (first[i] < least_first) least_first = first[i];
            if (first[i] > most_first) most_first = first[i];
            if (last[i] < least_last) least_last = last[i];
            if (last[i] > most_last) most_last = last[i];
        }
    }

    Seen seen(int64_t tile, int64_t round) const {
        if (most_last < tile || least_first >= tile + TILE) return Seen{0, 0, false};
        int64_t begin = least_first > tile ? round_down(least_first - tile, round) : 0;
        int64_t end = most_last + 1 < tile + TILE ? round_up(most_last + 1 - tile, round) : TILE;
        return Seen{begin, end, most_first > tile + begin || least_last < tile + end - 1};
    }

    // The spans as rows of a tile, in floats, which hold such small numbers exactly.
    void bounds(int64_t tile, float* low, float* high) const {
        for (int64_t i = 0; i < TILE; i++) {
            low[i] = first[i] <= tile ? 0.0f : first[i] - tile > TILE ? (float)TILE : (float)(first[i] - tile);
            high[i] = last[i] < tile ? -1.0f : last[i] - tile >= TILE ? (float)(TILE - 1) : (float)(last[i] - tile);
        }
    }
};

// Turns products q.k into exponents: scores times Curves::SCALE.
template <class T, bool IS_CAPPED>
struct Scores {
    vf inner, outer;

    explicit Scores(const gs_attention_call& call)
        : inner(vset(IS_CAPPED ? call.scale / call.cap : call.scale * Curves<T>::SCALE)),
          outer(vset(call.cap * Curves<T>::SCALE)) {}
    inline vf exponent(vf product) const { return IS_CAPPED ? Curves<T>::tanh(product * inner) * outer : product * inner; }
    // And the slope of the score in the product, without the scale.
    inline vf exponent(vf product, vf* slope) const {
        if (!IS_CAPPED) return product * inner;
        vf t = Curves<T>::tanh(product * inner);
        *slope = vfma(vset(-1.0f) * t, t, vset(1.0f));
        return t * outer;
    }
};

// Below this cap no score needs its row's maximum subtracted: exp(60) times millions of keys is a float32.
constexpr float LARGEST_SAFE_CAP = 60.0f;
constexpr float LOWEST = -3.0e38f;

// Queries' running sums: of weights, of weights as the products hold them, of weighted values [head_dim][TILE], and
// the exponent all are relative to. Values are divided by what the products hold, so that rounding cancels.
struct Running {
    float *total, *held, *most, *values;
};

// products [TILE][TILE] to weights as a right operand, adding to the running sums' totals.
template <class T, class Units, bool IS_CAPPED, bool IS_PARTIAL>
static void weigh(const Scores<T, IS_CAPPED>& scores, const float* products, float* weights, Seen seen,
                  const float* low, const float* high, Running running) {
    for (int64_t lane = 0; lane < TILE; lane += W) {
        vf from = vload(low + lane), to = vload(high + lane), total = vload(running.total + lane);
        vf held = vload(running.held + lane), most = vload(running.most + lane);
        for (int64_t row = seen.begin; row < seen.end; row += 2) {
            vf pair[2];
            for (int i = 0; i < 2; i++) {
                vf x = scores.exponent(vload(products + (row + i) * TILE + lane));
                x = Curves<T>::power(x - most);
                pair[i] = IS_PARTIAL ? keep(x, vset((float)(row + i)), from, to, vzero()) : x;
                total = total + pair[i];
            }
            held = held + Units::put_right(weights, row, lane, pair[0], pair[1]);
        }
        vstore(running.total + lane, total);
        vstore(running.held + lane, held);
    }
}

// Raise the running maxima to those of this tile, shrinking the sums so far.
template <class T, bool IS_CAPPED>
static void raise(const Scores<T, IS_CAPPED>& scores, const float* products, Seen seen, const float* low,
                  const float* high, Running running, int64_t head_dim) {
    float shrink[TILE];
    bool is_same = true;
    for (int64_t lane = 0; lane < TILE; lane += W) {
        vf before = vload(running.most + lane), most = before;
        for (int64_t row = seen.begin; row < seen.end; row++) {
            vf x = scores.exponent(vload(products + row * TILE + lane));
            most = vmax(most, keep(x, vset((float)row), vload(low + lane), vload(high + lane), vset(LOWEST)));
        }
        vf factor = Curves<T>::power(before - most);
        vstore(running.most + lane, most);
        vstore(running.total + lane, vload(running.total + lane) * factor);
        vstore(running.held + lane, vload(running.held + lane) * factor);
        vstore(shrink + lane, factor);
    }
    for (int64_t lane = 0; lane < TILE; lane++) is_same &= shrink[lane] == 1.0f;
    if (is_same) return;
    for (int64_t h = 0; h < head_dim; h++)
        for (int64_t lane = 0; lane < TILE; lane += W)
            vstore(running.values + h * TILE + lane, vload(running.values + h * TILE + lane) * vload(shrink + lane));
}

// What a panel's queries bring to the backward pass: the exponent of their weights' sum, and grad . out.
struct Ahead {
    const float *total, *delta;
};

// products and grads [TILE][TILE] to the weights as a left operand, and to the gradient of products as both.
template <class T, class Units, bool IS_CAPPED, bool IS_PARTIAL>
static void weigh_backward(const Scores<T, IS_CAPPED>& scores, const float* products, const float* grads,
                           float* weights, float* left, float* right, Seen seen, const float* low, const float* high,
                           Ahead ahead) {
    for (int64_t lane = 0; lane < TILE; lane += W) {
        vf from = vload(low + lane), to = vload(high + lane);
        vf most = vload(ahead.total + lane), delta = vload(ahead.delta + lane);
        for (int64_t row = seen.begin; row < seen.end; row += 2) {
            vf weight[2], grad[2];
            for (int i = 0; i < 2; i++) {
                vf slope, at = vset((float)(row + i));
                vf x = scores.exponent(vload(products + (row + i) * TILE + lane), &slope);
                x = Curves<T>::power(x - most);
                weight[i] = IS_PARTIAL ? keep(x, at, from, to, vzero()) : x;
                x = x * (vload(grads + (row + i) * TILE + lane) - delta);
                if (IS_CAPPED) x = x * slope;
                grad[i] = IS_PARTIAL ? keep(x, at, from, to, vzero()) : x;
            }
            Units::put_left(weights, row, lane, weight[0], weight[1]);
            Units::put_right(right, row, lane, grad[0], grad[1]);
            if (Units::PER_UNIT == 2) Units::put_left(left, row, lane, grad[0], grad[1]);
        }
    }
}
