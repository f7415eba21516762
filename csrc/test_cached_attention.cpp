// Attention to caches against double arithmetic, over buffers that touch a forbidden page.
#include <initializer_list>

#include "test_support.h"

namespace {

struct Case {
    int64_t n_heads, n_kv_heads, head_dim, n_places, window;
    float cap;
    int32_t dtype, cache_dtype;
};

// One layer's cache of two slots, the second of which holds a document.
struct Store {
    Guarded<int8_t> small;
    Numbers wide;
    Guarded<float> scales;
    const Case& c;
    Store(const Case& c, uint32_t seed)
        : small(c.cache_dtype == GS_INT8 ? size(c) : 0), wide(c.cache_dtype == GS_INT8 ? 0 : size(c), c.cache_dtype, 1.0f, seed),
          scales(2 * c.n_kv_heads * c.n_places), c(c) {
        for (size_t i = 0; i < small.size(); i++) small[i] = (int8_t)((i * 37 + seed) % 255 - 127);
        for (size_t i = 0; i < scales.size(); i++) scales[i] = 0.008f;
    }
    static size_t size(const Case& c) { return 2 * c.n_kv_heads * c.n_places * c.head_dim; }
    void* data() { return c.cache_dtype == GS_INT8 ? (void*)small.data() : wide.data(); }
    double at(int64_t head, int64_t position, int64_t i) {
        int64_t place = ((c.n_kv_heads + head) * c.n_places + position % c.n_places);
        return c.cache_dtype == GS_INT8 ? small[place * c.head_dim + i] * (double)scales[place] : wide[place * c.head_dim + i];
    }
};

void check(const Case& c, int64_t n_tokens, int64_t position) {
    const gs_segment segment = {0, n_tokens, 1, position};
    Store keys(c, 1), values(c, 2);
    Numbers q(n_tokens * c.n_heads * c.head_dim, c.dtype, 2.0f, 3), out(n_tokens * c.n_heads * c.head_dim, c.dtype);
    gs_cached_attention_call call = {{q.data(), c.n_heads * c.head_dim, c.head_dim}, keys.data(), values.data(),
        keys.scales.data(), values.scales.data(), &segment, out.data(), 1, c.n_heads, c.n_kv_heads, c.head_dim,
        c.n_places, c.window, 0.3f, c.cap, c.dtype, c.cache_dtype};
    if (c.cache_dtype != GS_INT8) call.key_scales = call.value_scales = nullptr;
    gs_cached_attention(&call);
    for (int64_t t = 0; t < n_tokens; t++)
        for (int64_t n = 0; n < c.n_heads; n++) {
            int64_t head = n / (c.n_heads / c.n_kv_heads), last = position + t;
            int64_t first = c.window && last >= c.window ? last - c.window + 1 : 0, at = (t * c.n_heads + n) * c.head_dim;
            std::vector<double> sums(c.head_dim);
            double total = 0;
            for (int64_t j = first; j <= last; j++) {
                double score = 0;
                for (int64_t i = 0; i < c.head_dim; i++) score += q[at + i] * keys.at(head, j, i) * 0.3;
                double weight = exp(c.cap ? c.cap * tanh(score / c.cap) : score);
                total += weight;
                for (int64_t i = 0; i < c.head_dim; i++) sums[i] += weight * values.at(head, j, i);
            }
            for (int64_t i = 0; i < c.head_dim; i++)
                expect("cached_attention", out[at + i], sums[i] / total, c.dtype, 3.0);
        }
}

void test_cached_attention() {
    for (int32_t dtype : {GS_FLOAT32, GS_BFLOAT16})
        for (int32_t cache_dtype : {GS_FLOAT32, GS_BFLOAT16, GS_INT8}) {
            check({2, 1, 7, 90, 0, 50.0f, dtype, cache_dtype}, 90, 0);
            check({4, 2, 33, 61, 20, 0.0f, dtype, cache_dtype}, 41, 530);
            check({3, 3, 16, 64, 64, 5.0f, dtype, cache_dtype}, 1, 100);
        }
}

const Test TESTS[] = {{"cached_attention", test_cached_attention}};

}  // namespace
