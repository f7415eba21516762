// What one query of each head reads from a cache. Included by decode.inl.
//
// Keys are taken in chunks of positions that begin at multiples of CHUNK, wherever a document begins or ends, so
// that the order of its sums depends on nothing else. A turn is one chunk of one key head of one row.

constexpr int64_t CHUNK = 256;
constexpr int64_t MAX_HEAD_DIM = 1024;

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

// Memory that will be read soon, asked for bit by bit while something else is computed. It goes to the second cache: a
// chunk is too long for the first, whose few open requests are left to what is read now.
struct Ahead {
    const char *next, *end;
    template <class C>
    static Ahead of(const C* from, int64_t n) { return Ahead{(const char*)from, (const char*)(from + n)}; }
    void ask(int64_t n_bytes) {
        const char* stop = n_bytes < end - next ? next + n_bytes : end;
        for (; next < stop; next += 64) __builtin_prefetch(next, 0, 2);
    }
};

// Products of a pair of queries with K keys.
template <int K, class C>
static inline void dots(const float* q, const C* keys, int64_t head_dim, float* first, float* second) {
    vf a[K], b[K];
    for (int j = 0; j < K; j++) a[j] = b[j] = vzero();
    int64_t i = 0;
    for (; i + 2 * W <= head_dim; i += 2 * W) {
        vf q0 = vload(q + i), q1 = vload(q + i + W), r0 = vload(q + head_dim + i), r1 = vload(q + head_dim + i + W);
#pragma GCC unroll 8
        for (int j = 0; j < K; j++) {
            vf low, high;
            load_two(keys + j * head_dim + i, &low, &high);
            a[j] = vfma(high, q1, vfma(low, q0, a[j]));
            b[j] = vfma(high, r1, vfma(low, r0, b[j]));
        }
    }
    for (int64_t n; i < head_dim; i += W) {
        n = head_dim - i < W ? head_dim - i : W;
        for (int j = 0; j < K; j++) {
            vf key = load(keys + j * head_dim + i, n);
            a[j] = vfma(key, load(q + i, n), a[j]);
            b[j] = vfma(key, load(q + head_dim + i, n), b[j]);
        }
    }
    for (int j = 0; j < K; j++) first[j] = hsum(a[j]), second[j] = hsum(b[j]);
}

// Add to out [2, head_dim] the values of n places, weighted.
template <class C>
static void add_values(const C* values, const float* first, const float* second, int64_t n, int64_t head_dim,
                       float* out, Ahead& ahead) {
    constexpr int PAIRS = 2;
    constexpr int64_t WIDTH = PAIRS * 2 * W;
    int64_t i = 0;
    for (; i + WIDTH <= head_dim; i += WIDTH) {
        vf a[2 * PAIRS], b[2 * PAIRS];
#pragma GCC unroll 4
        for (int j = 0; j < 2 * PAIRS; j++) a[j] = vload(out + i + j * W), b[j] = vload(out + head_dim + i + j * W);
        for (int64_t s = 0; s < n; s++) {
            ahead.ask(WIDTH * sizeof(C));
            vf p = vset(first[s]), r = vset(second[s]);
#pragma GCC unroll 4
            for (int j = 0; j < PAIRS; j++) {
                vf low, high;
                load_two(values + s * head_dim + i + j * 2 * W, &low, &high);
                a[2 * j] = vfma(low, p, a[2 * j]);
                a[2 * j + 1] = vfma(high, p, a[2 * j + 1]);
                b[2 * j] = vfma(low, r, b[2 * j]);
                b[2 * j + 1] = vfma(high, r, b[2 * j + 1]);
            }
        }
#pragma GCC unroll 4
        for (int j = 0; j < 2 * PAIRS; j++) vstore(out + i + j * W, a[j]), vstore(out + head_dim + i + j * W, b[j]);
    }
    for (; i + 2 * W <= head_dim; i += 2 * W)
        for (int64_t s = 0; s < n; s++) {
            vf low, high;
            load_two(values + s * head_dim + i, &low, &high);
            vstore(out + i, vfma(low, vset(first[s]), vload(out + i)));
            vstore(out + i + W, vfma(high, vset(first[s]), vload(out + i + W)));
            vstore(out + head_dim + i, vfma(low, vset(second[s]), vload(out + head_dim + i)));
            vstore(out + head_dim + i + W, vfma(high, vset(second[s]), vload(out + head_dim + i + W)));
        }
    for (int64_t left; i < head_dim; i += W) {
        left = head_dim - i < W ? head_dim - i : W;
        vf a = load(out + i, left), b = load(out + head_dim + i, left);
        for (int64_t s = 0; s < n; s++) {
            vf v = load(values + s * head_dim + i, left);
            a = vfma(v, vset(first[s]), a);
            b = vfma(v, vset(second[s]), b);
        }
        store(out + i, a, left);
        store(out + head_dim + i, b, left);
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

// Turn scores into weights; return the largest score and the sum of weights.
static inline void soften(float* scores, int64_t n, float cap, float* most, float* sum) {
    if (cap > 0.0f) cap_scores(scores, n, cap);
    vf largest = vset(-INFINITY), total = vzero();
    over(n, [&](int64_t i) { largest = vmax(largest, vload(scores + i)); },
         [&](int64_t i, int64_t m) { largest = vmax(largest, keep_n(load_n(scores + i, m), m, -INFINITY)); });
    *most = hmax(largest);
    vf down = vset(*most);
    auto piece = [&](int64_t i, int64_t m) {
        vf weight = keep_n(vexp(load(scores + i, m) - down), m, 0.0f);
        total += weight;
        store(scores + i, weight, m);
    };
    over(n, [&](int64_t i) { piece(i, W); }, piece);
    *sum = hsum(total);
}

// A pair of queries on its way through a chunk: its products with keys, and the values it collects.
template <class C>
struct Pair {
    const int64_t head_dim;
    float ordered[2 * MAX_HEAD_DIM], sums[2 * MAX_HEAD_DIM];

    Pair(const float* q, int64_t head_dim) : head_dim(head_dim) {
        order_pairs((const C*)nullptr, q, ordered, head_dim, false);
        order_pairs((const C*)nullptr, q + head_dim, ordered + head_dim, head_dim, false);
        memset(sums, 0, 2 * head_dim * sizeof(float));
    }
    void multiply(const C* keys, int64_t n, float* first, float* second, Ahead& ahead) const {
        int64_t s = 0;
        for (; s + 4 <= n; s += 4) {
            ahead.ask(4 * head_dim * sizeof(C));
            dots<4>(ordered, keys + s * head_dim, head_dim, first + s, second + s);
        }
        for (; s < n; s++) dots<1>(ordered, keys + s * head_dim, head_dim, first + s, second + s);
    }
    void weigh(const float*, const float*, int64_t) {}
    void add(const C* values, const float* first, const float* second, int64_t, int64_t n, Ahead& ahead) {
        add_values(values, first, second, n, head_dim, sums, ahead);
    }
    void put(float* first, float* second) const {
        order_pairs((const C*)nullptr, sums, first, head_dim, true);
        order_pairs((const C*)nullptr, sums + head_dim, second, head_dim, true);
    }
};

#include "decode_bytes.inl"

constexpr int64_t ASKED_BETWEEN = 2048;  // bytes, so that memory has work while scores become weights

// Positions begin to end of one key head, and what to ask for while keys and while values are read.
template <class C>
struct Chunk {
    Cached<C> cache;
    int64_t begin, end;
    Ahead values, next_keys;
};

// One pair of heads (the second may be a copy of the first) over a chunk: what they collect, unnormalized, behind the
// largest score and the sum of weights, at `first` and at `second`.
template <class C>
static void read_pair(const gs_decode_layer& layer, Chunk<C>& chunk, const float* q, float* first, float* second) {
    const Cached<C>& cache = chunk.cache;
    const int64_t n = chunk.end - chunk.begin, head_dim = cache.head_dim;
    float a[CHUNK + 3], b[CHUNK + 3];  // bytes are multiplied four keys at a time
    Pair<C> pair(q, head_dim);
    runs(chunk.begin, chunk.end, cache.n_places, [&](int64_t offset, int64_t place, int64_t m) {
        pair.multiply(cache.keys + place * head_dim, m, a + offset, b + offset, chunk.values);
        for (int64_t s = 0; s < m; s++) {
            float scale = layer.scale * (cache.key_scales ? cache.key_scales[place + s] : 1.0f);
            a[offset + s] *= scale;
            b[offset + s] *= scale;
        }
    });
    chunk.next_keys.ask(ASKED_BETWEEN);
    soften(a, n, layer.cap, first, first + 1);
    chunk.next_keys.ask(ASKED_BETWEEN);
    soften(b, n, layer.cap, second, second + 1);
    chunk.next_keys.ask(ASKED_BETWEEN);
    if (cache.value_scales)
        runs(chunk.begin, chunk.end, cache.n_places, [&](int64_t offset, int64_t place, int64_t m) {
            for (int64_t s = 0; s < m; s++) {
                a[offset + s] *= cache.value_scales[place + s];
                b[offset + s] *= cache.value_scales[place + s];
            }
        });
    pair.weigh(a, b, n);
    runs(chunk.begin, chunk.end, cache.n_places, [&](int64_t offset, int64_t place, int64_t m) {
        pair.add(cache.values + place * head_dim, a + offset, b + offset, offset, m, chunk.next_keys);
    });
    pair.put(first + 2, second + 2);
}
