// The decode step against double arithmetic, over buffers that touch a forbidden page.
#include <initializer_list>

#include "test_support.h"

namespace {

// One global and one local layer of the smallest widths at which every loop has whole and partial pieces.
struct Case {
    int64_t d_model, n_heads, n_kv_heads, head_dim, d_ff, n_places, window, position;
    float attention_cap;
    int32_t cache_dtype;
    bool has_qk_norm;
    bool is_shared;  // keys and values are those of another layer: read, not written
};

constexpr float SCALE = 0.3f, EPS = 1e-6f, EMBEDDING_SCALE = 3.0f, CAP = 4.0f;
constexpr int64_t VOCAB = 21;

struct Weights {
    Numbers q, k, v, o, gate, up, down, norm_in, norm_out, norm_ff_in, norm_ff_out, q_norm, k_norm, keys, values;
    Guarded<int8_t> key_bytes, value_bytes;
    Guarded<float> key_scales, value_scales, frequencies;

    Weights(const Case& c, uint32_t seed)
        : q(c.n_heads * c.head_dim * c.d_model, GS_BFLOAT16, 0.3f, seed), k(c.n_kv_heads * c.head_dim * c.d_model, GS_FLOAT32, 0.3f, seed + 1),
          v(c.n_kv_heads * c.head_dim * c.d_model, GS_FLOAT32, 0.3f, seed + 2), o(c.n_heads * c.head_dim * c.d_model, GS_FLOAT32, 0.3f, seed + 3),
          gate(c.d_ff * c.d_model, GS_FLOAT32, 0.3f, seed + 4), up(c.d_ff * c.d_model, GS_FLOAT32, 0.3f, seed + 5),
          down(c.d_ff * c.d_model, GS_BFLOAT16, 0.3f, seed + 6), norm_in(c.d_model, GS_FLOAT32, 0.5f, seed + 7),
          norm_out(c.d_model, GS_FLOAT32, 0.5f, seed + 8), norm_ff_in(c.d_model, GS_FLOAT32, 0.5f, seed + 9),
          norm_ff_out(c.d_model, GS_FLOAT32, 0.5f, seed + 10), q_norm(c.head_dim, GS_FLOAT32, 0.5f, seed + 11),
          k_norm(c.head_dim, GS_FLOAT32, 0.5f, seed + 12),
          keys(n_stored(c), c.cache_dtype == GS_BFLOAT16 ? GS_BFLOAT16 : GS_FLOAT32, 1.0f, seed + 13),
          values(n_stored(c), c.cache_dtype == GS_BFLOAT16 ? GS_BFLOAT16 : GS_FLOAT32, 1.0f, seed + 14),
          key_bytes(n_bytes(c)), value_bytes(n_bytes(c)), key_scales(n_bytes(c) / c.head_dim), value_scales(n_bytes(c) / c.head_dim),
          frequencies(c.head_dim / 2) {
        for (size_t i = 0; i < key_bytes.size(); i++) {
            key_bytes[i] = (int8_t)((int64_t)(i * 37 + seed) % 255 - 127);
            value_bytes[i] = (int8_t)((int64_t)(i * 91 + seed) % 255 - 127);
        }
        for (size_t i = 0; i < key_scales.size(); i++) key_scales[i] = value_scales[i] = 0.01f;
        for (size_t i = 0; i < frequencies.size(); i++) frequencies[i] = 1.0f / (float)(i + 1);
    }
    static int64_t n_stored(const Case& c) { return c.n_kv_heads * c.n_places * c.head_dim; }
    static int64_t n_bytes(const Case& c) { return c.cache_dtype == GS_INT8 ? n_stored(c) : 0; }

    double key(const Case& c, int64_t at) { return c.cache_dtype == GS_INT8 ? key_bytes[at] * (double)key_scales[at / c.head_dim] : keys[at]; }
    double value(const Case& c, int64_t at) { return c.cache_dtype == GS_INT8 ? value_bytes[at] * (double)value_scales[at / c.head_dim] : values[at]; }
};

gs_matrix rows(Numbers& weights, int64_t d_in, int64_t d_out, int32_t dtype) {
    return gs_matrix{weights.data(), nullptr, nullptr, d_in, d_out, 0, dtype == GS_BFLOAT16 ? 16 : 32, 0};
}

gs_decode_layer layer_of(const Case& c, Weights& w, int64_t window) {
    gs_decode_layer layer = {};
    int64_t d_query = c.n_heads * c.head_dim, d_key = c.n_kv_heads * c.head_dim;
    layer.q = rows(w.q, c.d_model, d_query, GS_BFLOAT16);
    if (!c.is_shared) {
        layer.k = rows(w.k, c.d_model, d_key, GS_FLOAT32);
        layer.v = rows(w.v, c.d_model, d_key, GS_FLOAT32);
    }
    layer.o = rows(w.o, d_query, c.d_model, GS_FLOAT32);
    layer.gate = rows(w.gate, c.d_model, c.d_ff, GS_FLOAT32);
    layer.up = rows(w.up, c.d_model, c.d_ff, GS_FLOAT32);
    layer.down = rows(w.down, c.d_ff, c.d_model, GS_BFLOAT16);
    layer.before_attention = w.norm_in.data();
    layer.after_attention = w.norm_out.data();
    layer.before_feed_forward = w.norm_ff_in.data();
    layer.after_feed_forward = window ? w.norm_ff_out.data() : nullptr;
    layer.q_norm = c.has_qk_norm ? w.q_norm.data() : nullptr;
    layer.k_norm = c.has_qk_norm ? w.k_norm.data() : nullptr;
    layer.frequencies = w.frequencies.data();
    layer.keys = c.cache_dtype == GS_INT8 ? (void*)w.key_bytes.data() : w.keys.data();
    layer.values = c.cache_dtype == GS_INT8 ? (void*)w.value_bytes.data() : w.values.data();
    layer.key_scales = c.cache_dtype == GS_INT8 ? w.key_scales.data() : nullptr;
    layer.value_scales = c.cache_dtype == GS_INT8 ? w.value_scales.data() : nullptr;
    layer.n_heads = c.n_heads;
    layer.n_kv_heads = c.n_kv_heads;
    layer.head_dim = c.head_dim;
    layer.n_places = c.n_places;
    layer.window = window;
    layer.scale = SCALE;
    layer.cap = c.attention_cap;
    return layer;
}

typedef std::vector<double> Row;

Row product(Numbers& weights, const Row& x, int64_t d_out) {
    Row y(d_out, 0.0);
    for (int64_t i = 0; i < d_out; i++)
        for (size_t j = 0; j < x.size(); j++) y[i] += weights[i * x.size() + j] * x[j];
    return y;
}

Row norm(const Row& x, Numbers& weight) {
    double squares = 0;
    for (double a : x) squares += a * a;
    Row y(x);
    for (size_t i = 0; i < x.size(); i++) y[i] *= (1.0 + weight[i]) / sqrt(squares / (double)x.size() + EPS);
    return y;
}

Row head_of(const Row& x, int64_t head, const Case& c, Weights& w, Numbers* weight) {
    Row y(x.begin() + head * c.head_dim, x.begin() + (head + 1) * c.head_dim);
    if (weight) y = norm(y, *weight);
    Row turned(y);
    int64_t half = c.head_dim / 2;
    for (int64_t i = 0; i < half; i++) {
        double angle = (double)c.position * w.frequencies[i];
        turned[i] = y[i] * cos(angle) - y[half + i] * sin(angle);
        turned[half + i] = y[half + i] * cos(angle) + y[i] * sin(angle);
    }
    return turned;
}

Row plain_attention(const Case& c, Weights& w, const Row& x, int64_t window) {
    Row q = product(w.q, x, c.n_heads * c.head_dim), k = product(w.k, x, c.n_kv_heads * c.head_dim);
    Row v = product(w.v, x, c.n_kv_heads * c.head_dim), read(c.n_heads * c.head_dim, 0.0);
    int64_t seen = window && c.position >= window ? c.position - window + 1 : 0;
    for (int64_t head = 0; head < c.n_heads; head++) {
        int64_t kv = head / (c.n_heads / c.n_kv_heads);
        Row query = head_of(q, head, c, w, c.has_qk_norm ? &w.q_norm : nullptr);
        Row mine = head_of(k, kv, c, w, c.has_qk_norm ? &w.k_norm : nullptr);
        double sum = 0;
        Row collected(c.head_dim, 0.0);
        for (int64_t position = seen; position <= c.position; position++) {
            int64_t at = (kv * c.n_places + position % c.n_places) * c.head_dim;
            bool is_new = position == c.position && !c.is_shared;
            double score = 0;
            for (int64_t i = 0; i < c.head_dim; i++) score += query[i] * (is_new ? mine[i] : w.key(c, at + i));
            score *= SCALE;
            if (c.attention_cap > 0) score = c.attention_cap * tanh(score / c.attention_cap);
            double weight = exp(score);
            sum += weight;
            for (int64_t i = 0; i < c.head_dim; i++)
                collected[i] += weight * (is_new ? v[kv * c.head_dim + i] : w.value(c, at + i));
        }
        for (int64_t i = 0; i < c.head_dim; i++) read[head * c.head_dim + i] = collected[i] / sum;
    }
    return product(w.o, read, c.d_model);
}

void plain_layer(const Case& c, Weights& w, Row& x, int64_t window) {
    Row y = norm(plain_attention(c, w, norm(x, w.norm_in), window), w.norm_out);
    for (size_t i = 0; i < x.size(); i++) x[i] += y[i];
    Row in = norm(x, w.norm_ff_in), gate = product(w.gate, in, c.d_ff), up = product(w.up, in, c.d_ff);
    for (int64_t i = 0; i < c.d_ff; i++) {
        double g = gate[i];
        gate[i] = 0.5 * g * (1.0 + tanh(0.7978845608028654 * (g + 0.044715 * g * g * g))) * up[i];
    }
    y = product(w.down, gate, c.d_model);
    if (window) y = norm(y, w.norm_ff_out);
    for (size_t i = 0; i < x.size(); i++) x[i] += y[i];
}

void check(const Case& c, int64_t n_threads) {
    Weights first(c, 1), second(c, 40);
    Numbers table(VOCAB * c.d_model, GS_FLOAT32, 0.4f, 70), last(c.d_model, GS_FLOAT32, 0.5f, 71);
    const int64_t token = 20;
    Row x(c.d_model);
    for (int64_t i = 0; i < c.d_model; i++) x[i] = table[token * c.d_model + i] * EMBEDDING_SCALE;
    plain_layer(c, first, x, c.window);
    plain_layer(c, second, x, 0);
    Row wanted = product(table, norm(x, last), VOCAB);

    gs_decode_layer layers[2] = {layer_of(c, first, c.window), layer_of(c, second, 0)};
    Guarded<int64_t> integers(3);
    integers[0] = token, integers[1] = c.position, integers[2] = 0;
    Guarded<float> logits(VOCAB);
    gs_decode_call call = {};
    call.layers = layers;
    call.table = rows(table, c.d_model, VOCAB, GS_FLOAT32);
    call.last_norm = last.data();
    call.token_ids = integers.data();
    call.positions = integers.data() + 1;
    call.slots = integers.data() + 2;
    call.logits = logits.data();
    call.n_layers = 2;
    call.n_rows = 1;
    call.capacity = c.n_places > c.position ? c.n_places : c.position + 1;
    call.n_threads = n_threads;
    call.eps = EPS;
    call.embedding_scale = EMBEDDING_SCALE;
    call.cap = CAP;
    call.cache_dtype = c.cache_dtype;
    int64_t n_bytes = 0;
    gs_decode_scratch(&call, &n_bytes);
    Guarded<uint8_t> scratch(n_bytes);
    call.scratch = scratch.data();
    gs_decode(&call);
    // What is written to the cache is rounded; so are the new key and value where they are read from it. What lies in
    // it is exact, and reading it costs little: in 8 bits, queries of 15 bits and weights of 15.
    int32_t dtype = c.cache_dtype == GS_FLOAT32 || c.is_shared ? GS_FLOAT32 : GS_BFLOAT16;
    double size = dtype == GS_BFLOAT16 ? 5.0 : c.cache_dtype == GS_INT8 ? 50.0 : 3.0;
    for (int64_t i = 0; i < VOCAB; i++) expect("decode", logits[i], CAP * tanh(wanted[i] / CAP), dtype, size);
}

void test_decode() {
    for (int64_t n_threads : {1, 3})
        for (int32_t cache_dtype : {GS_FLOAT32, GS_BFLOAT16, GS_INT8})
            for (int64_t position : {0, 5, 300})
                for (bool is_shared : {false, true}) {
                    check({24, 4, 2, 12, 40, 320, 6, position, 5.0f, cache_dtype, false, is_shared}, n_threads);
                    check({32, 3, 1, 64, 64, 301, 290, position, 0.0f, cache_dtype, true, is_shared}, n_threads);
                    check({24, 2, 1, 76, 40, 301, 270, position, 5.0f, cache_dtype, false, is_shared}, n_threads);
                }
}

const Test TESTS[] = {{"decode", test_decode}};

}  // namespace
