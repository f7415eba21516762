// What one query of each head reads from a cache. Included by decode.inl.
//
// Keys are taken in chunks of positions that begin at multiples of CHUNK, wherever a document begins or ends, so
// that the order of its sums depends on nothing else. A turn is one chunk of one key head of one row.

constexpr int64_t CHUNK = 256;

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

// Products of a pair of queries with one key.
template <class C>
static inline void dots(const float* q, const C* key, int64_t head_dim, float* first, float* second) {
    vf a[2] = {vzero(), vzero()}, b[2] = {vzero(), vzero()};
    auto piece = [&](int64_t i, int64_t n, int which) {
        vf k = load(key + i, n);
        a[which] = vfma(k, load(q + i, n), a[which]);
        b[which] = vfma(k, load(q + head_dim + i, n), b[which]);
    };
    over(head_dim, [&](int64_t i) { piece(i, W, (i / W) & 1); }, [&](int64_t i, int64_t n) { piece(i, n, 0); });
    *first = hsum(a[0] + a[1]);
    *second = hsum(b[0] + b[1]);
}

// Add to out [2, head_dim] the values of n places, weighted.
template <class C>
static void add_values(const C* values, const float* first, const float* second, int64_t n, int64_t head_dim,
                       float* out) {
    constexpr int WIDE = 4;
    int64_t i = 0;
    for (; i + WIDE * W <= head_dim; i += WIDE * W) {
        vf a[WIDE], b[WIDE];
        for (int j = 0; j < WIDE; j++) a[j] = vload(out + i + j * W), b[j] = vload(out + head_dim + i + j * W);
        for (int64_t s = 0; s < n; s++) {
            vf p = vset(first[s]), r = vset(second[s]);
            for (int j = 0; j < WIDE; j++) {
                vf v = vload(values + s * head_dim + i + j * W);
                a[j] = vfma(v, p, a[j]);
                b[j] = vfma(v, r, b[j]);
            }
        }
        for (int j = 0; j < WIDE; j++) vstore(out + i + j * W, a[j]), vstore(out + head_dim + i + j * W, b[j]);
    }
    for (int64_t n_left; i < head_dim; i += W) {
        n_left = head_dim - i < W ? head_dim - i : W;
        vf a = load(out + i, n_left), b = load(out + head_dim + i, n_left);
        for (int64_t s = 0; s < n; s++) {
            vf v = load(values + s * head_dim + i, n_left);
            a = vfma(v, vset(first[s]), a);
            b = vfma(v, vset(second[s]), b);
        }
        store(out + i, a, n_left);
        store(out + head_dim + i, b, n_left);
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

// One pair of heads (the second may be a copy of the first) over positions begin to end: what they collect,
// unnormalized, behind the largest score and the sum of weights, at out and out + stride.
template <class C>
static void read_pair(const gs_decode_layer& layer, const Cached<C>& cache, const float* q, int64_t begin, int64_t end,
                      float* first, float* second) {
    float scores[2][CHUNK];
    const int64_t n = end - begin, head_dim = cache.head_dim;
    runs(begin, end, cache.n_places, [&](int64_t offset, int64_t place, int64_t m) {
        for (int64_t s = 0; s < m; s++) {
            float *a = scores[0] + offset + s, *b = scores[1] + offset + s;
            dots(q, cache.keys + (place + s) * head_dim, head_dim, a, b);
            float scale = layer.scale * (cache.key_scales ? cache.key_scales[place + s] : 1.0f);
            *a *= scale;
            *b *= scale;
        }
    });
    soften(scores[0], n, layer.cap, first, first + 1);
    soften(scores[1], n, layer.cap, second, second + 1);
    float collected[2 * 1024];
    float* sums = collected;
    memset(sums, 0, 2 * head_dim * sizeof(float));
    runs(begin, end, cache.n_places, [&](int64_t offset, int64_t place, int64_t m) {
        if (cache.value_scales)
            for (int64_t s = 0; s < m; s++)
                for (int which = 0; which < 2; which++) scores[which][offset + s] *= cache.value_scales[place + s];
        add_values(cache.values + place * head_dim, scores[0] + offset, scores[1] + offset, m, head_dim, sums);
    });
    memcpy(first + 2, sums, head_dim * sizeof(float));
    memcpy(second + 2, sums + head_dim, head_dim * sizeof(float));
}
