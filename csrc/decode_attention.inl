// What one query of each head reads from a cache. Included by decode.inl.
//
// Keys are taken in chunks of positions that begin at multiples of CHUNK, wherever a document begins or ends, so
// that the order of its sums depends on nothing else. A turn is some chunks of one key head of one row.

constexpr int64_t CHUNK = 256;
constexpr int64_t MAX_HEAD_DIM = 1024;
#ifndef XRUN
#define XRUN 4
#endif
constexpr int64_t RUN = XRUN;
constexpr int64_t MOST_CHUNKS = 8;          // chunks whose keys are read in one go, then their values
constexpr int64_t VALUES_AT_ONCE = 4096;  // bytes of values that one query reads before the other

#include "decode_ahead.inl"

// One row's view of a layer's cache for one key head.
template <class C>
struct Cached {
    C *keys, *values;
    float *key_scales, *value_scales;
    int64_t n_places, head_dim;
};

template <class C>
static Cached<C> cached(const gs_decode_layer& layer, int64_t slot, int64_t kv_head) {
    int64_t head = slot * layer.n_kv_heads + kv_head, at = head * layer.n_places;
    return Cached<C>{(C*)layer.keys + at * layer.head_dim, (C*)layer.values + at * layer.head_dim,
                     layer.key_scales ? layer.key_scales + at : nullptr,
                     layer.value_scales ? layer.value_scales + at : nullptr, layer.n_places, layer.head_dim};
}

template <class C>
static inline void write_vector(const float* x, int64_t n, C* out, float*) {
    auto piece = [&](int64_t i, int64_t m) { store(out + i, load(x + i, m), m); };
    over(n, [&](int64_t i) { piece(i, W); }, piece);
}
static inline void write_vector(const float* x, int64_t n, byte* out, float* scale) {
    float most = 0.0f, none = 0.0f;
    for (int64_t i = 0; i < n; i++) {
        float size = fabsf(x[i]);
        most = size > most ? size : most;
        none += x[i] * 0.0f;
    }
    *scale = none == 0.0f ? most / 127.0f : NAN;
    float inverse = 127.0f / most;
    bool is_plain = none == 0.0f && inverse < INFINITY;
    for (int64_t i = 0; i < n; i++) out[i].bits = is_plain ? (int8_t)lrintf(x[i] * inverse) : 0;
}

// Products of a pair of queries with four keys, of which n are there: the last one stands in for others. Meanwhile as
// many bytes are touched from `next` on, if that is not null.
template <class C>
static inline void four_dots(const float* q, const C* keys, int64_t n, int64_t head_dim, const C* next, float* first,
                             float* second) {
    const C* rows[4];
    vf a[4], b[4];
    for (int j = 0; j < 4; j++) a[j] = b[j] = vzero(), rows[j] = keys + (j < n ? j : n - 1) * head_dim;
    int64_t i = 0;
    for (; i + 2 * W <= head_dim; i += 2 * W) {
        vf q0 = vload(q + i), q1 = vload(q + i + W), r0 = vload(q + head_dim + i), r1 = vload(q + head_dim + i + W);
        if (next) touch<4 * 2 * W * sizeof(C)>(next + 4 * i);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            vf low, high;
            load_two_once(rows[j] + i, &low, &high);
            a[j] = vfma(high, q1, vfma(low, q0, a[j]));
            b[j] = vfma(high, r1, vfma(low, r0, b[j]));
        }
    }
    for (int64_t m; i < head_dim; i += W) {
        m = head_dim - i < W ? head_dim - i : W;
        for (int j = 0; j < 4; j++) {
            vf key = load(rows[j] + i, m);
            a[j] = vfma(key, load(q + i, m), a[j]);
            b[j] = vfma(key, load(q + head_dim + i, m), b[j]);
        }
    }
    store_sums(a, first);
    store_sums(b, second);
}

// Add to out 2 P W columns of the values of n places, weighted.
template <int P, class C>
static inline void add_columns(const C* values, const float* weights, int64_t n, int64_t head_dim, float* out) {
    vf sums[2 * P];
#pragma GCC unroll 16
    for (int j = 0; j < 2 * P; j++) sums[j] = vload(out + j * W);
    for (int64_t s = 0; s < n; s++, values += head_dim) {
        vf weight = vset(weights[s]);
#pragma GCC unroll 8
        for (int j = 0; j < P; j++) {
            vf low, high;
            load_two_once(values + j * 2 * W, &low, &high);
            sums[2 * j] = vfma(low, weight, sums[2 * j]);
            sums[2 * j + 1] = vfma(high, weight, sums[2 * j + 1]);
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < 2 * P; j++) vstore(out + j * W, sums[j]);
}

// Add to out [head_dim] the values of n places, weighted: whole rows at once where the registers take them.
template <class C>
static void add_values(const C* values, const float* weights, int64_t n, int64_t head_dim, float* out) {
    constexpr int P = W == 16 ? 8 : 4;
    int64_t i = 0;
    auto add = [&](auto columns, int64_t width) {
        for (; i + width <= head_dim; i += width) columns(values + i, weights, n, head_dim, out + i);
    };
    add(add_columns<P, C>, P * 2 * W);
    add(add_columns<P / 2, C>, P * W);
    add(add_columns<1, C>, 2 * W);
    for (int64_t left; i < head_dim; i += W) {
        left = head_dim - i < W ? head_dim - i : W;
        vf sum = load(out + i, left);
        for (int64_t s = 0; s < n; s++) sum = vfma(load(values + s * head_dim + i, left), vset(weights[s]), sum);
        store(out + i, sum, left);
    }
}

// Call run(offset, place, n) for the runs of consecutive places that hold positions begin to end.
template <class Run>
static inline void runs(int64_t begin, int64_t end, int64_t n_places, const Run& run) {
    for (int64_t at = begin; at < end;) {
        int64_t place = at % n_places, n = n_places - place < end - at ? n_places - place : end - at;
        run(at - begin, place, n);
        at += n;
    }
}

static inline void cap_scores(float* scores, int64_t n, float cap) {
    auto piece = [&](int64_t i, int64_t m) {
        store(scores + i, vtanh(load(scores + i, m) * vset(1.0f / cap)) * vset(cap), m);
    };
    over(n, [&](int64_t i) { piece(i, W); }, piece);
}

// Multiply n scores by a number, and by one of their own where `scales` are given.
static inline void scale_scores(float* scores, int64_t n, float scale, const float* scales, Ahead& ahead) {
    auto piece = [&](int64_t i, int64_t m) {
        ahead.fill(scores);
        vf both = scales ? vset(scale) * load(scales + i, m) : vset(scale);
        store(scores + i, load(scores + i, m) * both, m);
    };
    over(n, [&](int64_t i) { piece(i, W); }, piece);
}

// Turn scores into weights; return the largest score and the sum of weights. Memory gets something to do meanwhile.
static inline void soften(float* scores, int64_t n, float cap, float* most, float* sum, Ahead& ahead) {
    vf largest = vset(-INFINITY), total = vzero();
    auto look = [&](int64_t i, int64_t m) {
        vf score = load(scores + i, m);
        if (cap > 0.0f) {
            ahead.fill(scores);
            score = vtanh(score * vset(1.0f / cap)) * vset(cap);
            store(scores + i, score, m);
        }
        largest = vmax(largest, keep_n(score, m, -INFINITY));
    };
    over(n, [&](int64_t i) { look(i, W); }, look);
    *most = hmax(largest);
    vf down = vset(*most);
    auto piece = [&](int64_t i, int64_t m) {
        ahead.fill(scores);
        vf weight = keep_n(vexp(load(scores + i, m) - down), m, 0.0f);
        total += weight;
        store(scores + i, weight, m);
    };
    over(n, [&](int64_t i) { piece(i, W); }, piece);
    *sum = hsum(total);
}

// A pair of queries on its way through chunks: its products with keys, and the values a chunk's weights collect. What
// is read at a stretch ends at `limit`.
template <class C>
struct Pair {
    const int64_t head_dim;
    int64_t owner;  // counts heads of all rows: whose queries these are
    const float* weights[2];
    alignas(64) float ordered[2 * MAX_HEAD_DIM], sums[2 * MAX_HEAD_DIM];

    explicit Pair(int64_t head_dim) : head_dim(head_dim), owner(-1) {}
    void prepare(const float* q, int64_t its_owner) {
        owner = its_owner;
        order_pairs((const C*)nullptr, q, ordered, head_dim, false);
        order_pairs((const C*)nullptr, q + head_dim, ordered + head_dim, head_dim, false);
    }
    void multiply(const C* keys, int64_t n, const C* limit, float* first, float* second, Ahead&) const {
        const int64_t four = 4 * head_dim;
        for (int64_t s = 0; s < n; s += 4, keys += four) {
            const C* next = limit - keys >= 2 * four ? keys + four : nullptr;
            four_dots(ordered, keys, n - s, head_dim, next, first + s, second + s);
        }
    }
    void begin(const float* first, const float* second, int64_t) {
        weights[0] = first, weights[1] = second;
        memset(sums, 0, 2 * head_dim * sizeof(float));
    }
    // Add the values of n places; the first has the chunk's weight at `offset`.
    void add(const C* values, int64_t offset, int64_t n, const C*, Ahead&) {
        const int64_t size = VALUES_AT_ONCE / (head_dim * sizeof(C)), most = size > 0 ? size : 1;
        for (int64_t s = 0, m; s < n; s += m) {
            m = n - s < most ? n - s : most;
            for (int which = 0; which < 2; which++)
                add_values(values + s * head_dim, weights[which] + offset + s, m, head_dim, sums + which * head_dim);
        }
    }
    void put(float* first, float* second) const {
        order_pairs((const C*)nullptr, sums, first, head_dim, true);
        order_pairs((const C*)nullptr, sums + head_dim, second, head_dim, true);
    }
};

#include "decode_bytes.inl"

// One pair of heads (the second may be a copy of the first) over positions begin to end, MOST_CHUNKS chunks at most.
template <class C>
struct Reader {
    const gs_decode_layer& layer;
    const Cached<C> cache;
    const int64_t begin, end;
    Pair<C>& pair;
    Ahead ahead;
    // Scores, then weights; keys are multiplied four at a time.
    float a[MOST_CHUNKS * CHUNK + 3], b[MOST_CHUNKS * CHUNK + 3];

    Reader(const gs_decode_layer& layer, const Cached<C>& cache, int64_t begin, int64_t end, Pair<C>& pair)
        : layer(layer), cache(cache), begin(begin), end(end), pair(pair), ahead() {}

    // Numbers of keys or values that lie at a stretch from a position on.
    int64_t stretch(int64_t position) const {
        int64_t left = cache.n_places - position % cache.n_places;
        return (left < end - position ? left : end - position) * cache.head_dim;
    }
    template <class T>
    T* at(T* stored, int64_t position) const { return stored + position % cache.n_places * cache.head_dim; }
    void enter_keys(int64_t position) {
        ahead.enter(at(cache.keys, position), stretch(position), at(cache.values, begin), stretch(begin));
    }
    void enter_values(int64_t position) {
        ahead.enter(at(cache.values, position), stretch(position), (C*)nullptr, 0);
    }
    static void ask_scales(const float* scales, int64_t n) {
        for (int64_t s = 0; s < n; s += LINE / 4) Ahead::ask<LINE>((const char*)(scales + s));
    }
    void scale(int64_t from, int64_t n, float by, const float* scales) {
        scale_scores(a + from, n, by, scales, ahead);
        scale_scores(b + from, n, by, scales, ahead);
    }

    // Weights of the keys from one position to another; their largest scores and sums, at first and at second.
    void read_keys(int64_t from, int64_t to, float* first, float* second) {
        runs(from, to, cache.n_places, [&](int64_t offset, int64_t place, int64_t n) {
            const int64_t position = from + offset, index = position - begin;
            const C* keys = at(cache.keys, position);
            if (cache.key_scales) ask_scales(cache.key_scales + place, n), ask_scales(cache.value_scales + place, n);
            enter_keys(position);
            pair.multiply(keys, n, keys + stretch(position), a + index, b + index, ahead);
            scale(index, n, layer.scale, cache.key_scales ? cache.key_scales + place : nullptr);
        });
        if (to < end) enter_keys(to);
        else enter_values(begin);
        soften(a + from - begin, to - from, layer.cap, first, first + 1, ahead);
        soften(b + from - begin, to - from, layer.cap, second, second + 1, ahead);
    }
    // What these weights collect from the values.
    void read_values(int64_t from, int64_t to, float* first, float* second) {
        if (cache.value_scales)
            runs(from, to, cache.n_places, [&](int64_t offset, int64_t place, int64_t n) {
                scale(from - begin + offset, n, 1.0f, cache.value_scales + place);
            });
        pair.begin(a + from - begin, b + from - begin, to - from);
        runs(from, to, cache.n_places, [&](int64_t offset, int64_t, int64_t n) {
            const C* values = at(cache.values, from + offset);
            enter_values(from + offset);
            pair.add(values, offset, n, values + stretch(from + offset), ahead);
        });
        pair.put(first, second);
    }
    // Each chunk leaves, at `first` and at `second`, its largest score, its sum of weights, and what it collects,
    // unnormalized.
    void read(float* first, float* second) {
        const int64_t size = cache.head_dim + 2;
        auto chunks = [&](auto&& work) {
            int64_t index = 0;
            for (int64_t from = begin, to; from < end; from = to, index += size) {
                to = (from / CHUNK + 1) * CHUNK;
                work(from, to = to < end ? to : end, first + index, second + index);
            }
        };
        chunks([&](int64_t from, int64_t to, float* x, float* y) { read_keys(from, to, x, y); });
        chunks([&](int64_t from, int64_t to, float* x, float* y) { read_values(from, to, x + 2, y + 2); });
    }
};
