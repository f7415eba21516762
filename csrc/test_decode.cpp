// The decode step against double arithmetic, over buffers that touch a forbidden page.
#include <initializer_list>

#include "test_support.h"
#include "threads.h"

namespace {

// One local and one global layer of the smallest widths at which every loop has whole and partial pieces. Several
// documents at once, in slots of another order and with free ones between.
struct Case {
    int64_t d_model, n_heads, n_kv_heads, head_dim, d_ff, vocab_size;
    int64_t n_places, n_ring_places, window;  // of the global layer, and of the local one, whose ring all go around
    float attention_cap;
    int32_t cache_dtype, norm_dtype;
    bool has_qk_norm;
    bool is_shared;  // keys and values are those of another layer: read, not written
    bool is_packed;  // some matrices are in 4 bits
    int64_t rank;    // of the deltas of some matrices, of others one more; 0 is none
    int32_t delta_dtype;
    const int64_t* adapters;  // of each place
};

// One new token of a document, or what its slot says. The longest document ends where the cache does.
struct Place {
    int64_t token, position, slot;
};
constexpr Place PLACES[] = {{20, 300, 5}, {0, 0, 1}, {7, 5, 4}, {20, 150, 0}, {13, 299, 2}};
constexpr int64_t N_ROWS = 5, N_SLOTS = 6;  // a tile of 4 and one more
constexpr int64_t MIXED[N_ROWS] = {0, -1, 1, 1, 0}, ALIKE[N_ROWS] = {1, 1, 1, 1, -1};

constexpr float SCALE = 0.3f, EPS = 1e-6f, EMBEDDING_SCALE = 3.0f, CAP = 4.0f;

typedef std::vector<double> Row;

// Low-rank adapters of a matrix; none at rank 0.
class Deltas {
  public:
    Deltas(int64_t d_in, int64_t d_out, int64_t rank, int32_t dtype, uint32_t seed)
        : d_in_(d_in), d_out_(d_out), lora_a_(2 * rank * d_in, dtype, 0.3f, seed), lora_b_(2 * d_out * rank, dtype, 0.5f, seed + 1),
          scale_(2, dtype, 2.0f, seed + 2), delta_{lora_a_.data(), lora_b_.data(), scale_.data(), rank, dtype, dtype} {}
    const gs_delta* delta() const { return delta_.rank ? &delta_ : nullptr; }
    void add(const Row& x, int64_t adapter, Row& y) {
        for (int64_t number = 0; adapter >= 0 && number < delta_.rank; number++) {
            int64_t row = adapter * delta_.rank + number;
            double low = 0;
            for (int64_t i = 0; i < d_in_; i++) low += lora_a_[row * d_in_ + i] * x[i];
            for (int64_t output = 0; output < d_out_; output++)
                y[output] += scale_[adapter] * lora_b_[(adapter * d_out_ + output) * delta_.rank + number] * low;
        }
    }

  private:
    int64_t d_in_, d_out_;
    Numbers lora_a_, lora_b_, scale_;
    gs_delta delta_;
};

// A matrix of 32, 16 or 4 bits.
class Matrix {
  public:
    Matrix(int64_t d_in, int64_t d_out, int32_t bits, float size, uint32_t seed, int64_t rank = 0, int32_t dtype = GS_FLOAT32)
        : d_in_(d_in), d_out_(d_out), bits_(bits), rows_(bits == 4 ? 0 : d_out * d_in, bits == 16 ? GS_BFLOAT16 : GS_FLOAT32, size, seed),
          stored_(bits == 4 ? d_out * d_in / 2 : 0), packed_(bits == 4 ? n_blocks() * n_units() * 64 * 4 : 0),
          scales_(bits == 4 ? n_blocks() * n_units() * GS_QUANT_BLOCK : 0, GS_FLOAT32, size / 8.0f, seed),
          deltas_(d_in, d_out, rank, dtype, seed + 900) {
        for (size_t i = 0; i < stored_.size(); i++) stored_[i] = (uint8_t)((i * 2654435761u + seed * 40503u) >> 11);
        if (bits == 4) gs_pack_quantized(stored_.data(), packed_.data(), d_in, d_out, bits);
    }
    gs_matrix matrix() {
        if (bits_ == 4) return {packed_.data(), scales_.data(), nullptr, d_in_, d_out_, 1, bits_, GS_FLOAT32, deltas_.delta()};
        return {rows_.data(), nullptr, nullptr, d_in_, d_out_, 0, bits_, 0, deltas_.delta()};
    }
    double at(int64_t output, int64_t i) {
        if (bits_ != 4) return rows_[output * d_in_ + i];
        int value = (stored_[output * (d_in_ / 2) + i / 2] >> (i % 2 * 4)) & 15;
        int64_t group = output / GS_QUANT_BLOCK * n_units() + i / GS_QUANT_UNIT;
        return (value - 8) * scales_[group * GS_QUANT_BLOCK + output % GS_QUANT_BLOCK];
    }
    Row times(Row x, int64_t adapter = -1) {
        Row y(d_out_, 0.0);
        deltas_.add(x, adapter, y);
        if (bits_ == 4) round_inputs(x);
        for (int64_t output = 0; output < d_out_; output++)
            for (int64_t i = 0; i < d_in_; i++) y[output] += at(output, i) * x[i];
        return y;
    }

  private:
    int64_t n_blocks() const { return (d_out_ + GS_QUANT_BLOCK - 1) / GS_QUANT_BLOCK; }
    int64_t n_units() const { return (d_in_ + GS_QUANT_UNIT - 1) / GS_QUANT_UNIT; }
    void round_inputs(Row& x) const {
        for (int64_t begin = 0; begin < d_in_; begin += GS_QUANT_UNIT) {
            int64_t end = begin + GS_QUANT_UNIT < d_in_ ? begin + GS_QUANT_UNIT : d_in_;
            double most = 0;
            for (int64_t i = begin; i < end; i++) most = fmax(most, fabs(x[i]));
            for (int64_t i = begin; i < end; i++) x[i] = nearbyint(x[i] * (127.0 / most)) * (most / 127.0);
        }
    }

    int64_t d_in_, d_out_;
    int32_t bits_;
    Numbers rows_;
    Guarded<uint8_t> stored_, packed_;
    Numbers scales_;
    Deltas deltas_;
};

// A layer's weights and cache; window 0 is the global one.
struct Weights {
    const int64_t window, n_places;
    Matrix q, k, v, o, gate, up, down;
    Numbers norm_in, norm_out, norm_ff_in, norm_ff_out, q_norm, k_norm, keys, values;
    Guarded<int8_t> key_bytes, value_bytes;
    Guarded<float> key_scales, value_scales, frequencies;

    Weights(const Case& c, int64_t window, uint32_t seed)
        : window(window), n_places(window ? c.n_ring_places : c.n_places),
          q(c.d_model, c.n_heads * c.head_dim, 16, 0.3f, seed, c.rank, c.delta_dtype), k(c.d_model, c.n_kv_heads * c.head_dim, 32, 0.3f, seed + 1),
          v(c.d_model, c.n_kv_heads * c.head_dim, few(c), 0.3f, seed + 2, more(c), c.delta_dtype),
          o(c.n_heads * c.head_dim, c.d_model, 32, 0.3f, seed + 3, c.rank, c.delta_dtype),
          gate(c.d_model, c.d_ff, 16, 0.3f, seed + 4, c.rank, c.delta_dtype), up(c.d_model, c.d_ff, few(c), 0.3f, seed + 5, more(c), c.delta_dtype),
          down(c.d_ff, c.d_model, 16, 0.3f, seed + 6, c.rank, c.delta_dtype), norm_in(c.d_model, c.norm_dtype, 0.5f, seed + 7),
          norm_out(c.d_model, c.norm_dtype, 0.5f, seed + 8), norm_ff_in(c.d_model, c.norm_dtype, 0.5f, seed + 9),
          norm_ff_out(c.d_model, c.norm_dtype, 0.5f, seed + 10), q_norm(c.head_dim, c.norm_dtype, 0.5f, seed + 11),
          k_norm(c.head_dim, c.norm_dtype, 0.5f, seed + 12), keys(n_numbers(c), kept_dtype(c), 1.0f, seed + 13),
          values(n_numbers(c), kept_dtype(c), 1.0f, seed + 14), key_bytes(n_bytes(c)), value_bytes(n_bytes(c)),
          key_scales(n_bytes(c) / c.head_dim), value_scales(n_bytes(c) / c.head_dim), frequencies(c.head_dim / 2) {
        for (size_t i = 0; i < key_bytes.size(); i++) {
            key_bytes[i] = (int8_t)((int64_t)(i * 37 + seed) % 255 - 127);
            value_bytes[i] = (int8_t)((int64_t)(i * 91 + seed) % 255 - 127);
        }
        for (size_t i = 0; i < key_scales.size(); i++) key_scales[i] = value_scales[i] = 0.01f;
        for (size_t i = 0; i < frequencies.size(); i++) frequencies[i] = (window ? 1.0f : 0.25f) / (float)(i + 1);
    }
    static int32_t few(const Case& c) { return c.is_packed ? 4 : 32; }
    static int64_t more(const Case& c) { return c.rank ? c.rank + 1 : 0; }
    static int32_t kept_dtype(const Case& c) { return c.cache_dtype == GS_BFLOAT16 ? GS_BFLOAT16 : GS_FLOAT32; }
    int64_t n_stored(const Case& c) const { return N_SLOTS * c.n_kv_heads * n_places * c.head_dim; }
    int64_t n_bytes(const Case& c) const { return c.cache_dtype == GS_INT8 ? n_stored(c) : 0; }
    int64_t n_numbers(const Case& c) const { return c.cache_dtype == GS_INT8 ? 0 : n_stored(c); }

    double key(const Case& c, int64_t at) { return c.cache_dtype == GS_INT8 ? key_bytes[at] * (double)key_scales[at / c.head_dim] : keys[at]; }
    double value(const Case& c, int64_t at) { return c.cache_dtype == GS_INT8 ? value_bytes[at] * (double)value_scales[at / c.head_dim] : values[at]; }
};

gs_decode_layer layer_of(const Case& c, Weights& w) {
    gs_decode_layer layer = {};
    layer.q = w.q.matrix();
    if (!c.is_shared) layer.k = w.k.matrix(), layer.v = w.v.matrix();
    layer.o = w.o.matrix();
    layer.gate = w.gate.matrix();
    layer.up = w.up.matrix();
    layer.down = w.down.matrix();
    layer.before_attention = w.norm_in.data();
    layer.after_attention = w.norm_out.data();
    layer.before_feed_forward = w.norm_ff_in.data();
    layer.after_feed_forward = w.window ? w.norm_ff_out.data() : nullptr;
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
    layer.n_places = w.n_places;
    layer.window = w.window;
    layer.scale = SCALE;
    layer.cap = c.attention_cap;
    return layer;
}

Row norm(const Row& x, Numbers& weight) {
    double squares = 0;
    for (double a : x) squares += a * a;
    Row y(x);
    for (size_t i = 0; i < x.size(); i++) y[i] *= (1.0 + weight[i]) / sqrt(squares / (double)x.size() + EPS);
    return y;
}

Row head_of(const Row& x, int64_t head, const Case& c, Weights& w, int64_t position, Numbers* weight) {
    Row y(x.begin() + head * c.head_dim, x.begin() + (head + 1) * c.head_dim);
    if (weight) y = norm(y, *weight);
    Row turned(y);
    int64_t half = c.head_dim / 2;
    for (int64_t i = 0; i < half; i++) {
        double angle = (double)position * w.frequencies[i];
        turned[i] = y[i] * cos(angle) - y[half + i] * sin(angle);
        turned[half + i] = y[half + i] * cos(angle) + y[i] * sin(angle);
    }
    return turned;
}

Row plain_attention(const Case& c, Weights& w, const Row& x, const Place& place, int64_t adapter) {
    Row q = w.q.times(x, adapter), k = w.k.times(x), v = w.v.times(x, adapter), read(c.n_heads * c.head_dim, 0.0);
    int64_t seen = w.window && place.position >= w.window ? place.position - w.window + 1 : 0;
    for (int64_t head = 0; head < c.n_heads; head++) {
        int64_t kv = head / (c.n_heads / c.n_kv_heads);
        Row query = head_of(q, head, c, w, place.position, c.has_qk_norm ? &w.q_norm : nullptr);
        Row mine = head_of(k, kv, c, w, place.position, c.has_qk_norm ? &w.k_norm : nullptr);
        double sum = 0;
        Row collected(c.head_dim, 0.0);
        for (int64_t position = seen; position <= place.position; position++) {
            int64_t at = ((place.slot * c.n_kv_heads + kv) * w.n_places + position % w.n_places) * c.head_dim;
            bool is_new = position == place.position && !c.is_shared;
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
    return w.o.times(read, adapter);
}

void plain_layer(const Case& c, Weights& w, Row& x, const Place& place, int64_t adapter) {
    Row y = norm(plain_attention(c, w, norm(x, w.norm_in), place, adapter), w.norm_out);
    for (size_t i = 0; i < x.size(); i++) x[i] += y[i];
    Row in = norm(x, w.norm_ff_in), gate = w.gate.times(in, adapter), up = w.up.times(in, adapter);
    for (int64_t i = 0; i < c.d_ff; i++) {
        double g = gate[i];
        gate[i] = 0.5 * g * (1.0 + tanh(0.7978845608028654 * (g + 0.044715 * g * g * g))) * up[i];
    }
    y = w.down.times(gate, adapter);
    if (w.window) y = norm(y, w.norm_ff_out);
    for (size_t i = 0; i < x.size(); i++) x[i] += y[i];
}

// Logits of all places, by double arithmetic. Of the cache, which a call writes to, it reads what was there before.
std::vector<Row> plain_logits(const Case& c, Weights& first, Weights& second, Matrix& table, Numbers& last) {
    std::vector<Row> wanted;
    for (const Place& place : PLACES) {
        Row x(c.d_model);
        for (int64_t i = 0; i < c.d_model; i++) x[i] = table.at(place.token, i) * EMBEDDING_SCALE;
        const int64_t adapter = c.adapters ? c.adapters[&place - PLACES] : 0;
        plain_layer(c, first, x, place, adapter);
        plain_layer(c, second, x, place, adapter);
        wanted.push_back(table.times(norm(x, last)));
        for (double& logit : wanted.back()) logit = CAP * tanh(logit / CAP);
    }
    return wanted;
}

// What is written to the cache is rounded; so are the new key and value where they are read from it. What lies in it
// is exact, and reading it costs little: in 8 bits, queries of 15 bits and weights of 15. With matrices of 4 bits,
// inputs are rounded to 8: some come out the other way.
void compare(const Case& c, Guarded<float>& logits, const std::vector<Row>& wanted) {
    bool is_rounded = c.cache_dtype != GS_FLOAT32 && !c.is_shared;
    double size = is_rounded ? 5.0 : c.is_packed ? 2.0 : c.cache_dtype == GS_INT8 ? 50.0 : 3.0;
    int32_t dtype = is_rounded || c.is_packed ? GS_BFLOAT16 : GS_FLOAT32;
    for (int64_t row = 0; row < N_ROWS; row++)
        for (int64_t i = 0; i < c.vocab_size; i++)
            expect("decode", logits[row * c.vocab_size + i], wanted[row][i], dtype, size);
}

void check(const Case& c, int64_t n_threads) {
    Weights first(c, c.window, 1), second(c, 0, 40);
    Matrix table(c.d_model, c.vocab_size, Weights::few(c), 0.4f, 70);
    Numbers last(c.d_model, c.norm_dtype, 0.5f, 71);
    const std::vector<Row> wanted = plain_logits(c, first, second, table, last);
    gs_decode_layer layers[2] = {layer_of(c, first), layer_of(c, second)};
    Guarded<int64_t> tokens(N_ROWS), positions(N_ROWS), slots(N_ROWS), adapters(N_ROWS);
    for (int64_t row = 0; c.adapters && row < N_ROWS; row++) adapters[row] = c.adapters[row];
    for (int64_t row = 0; row < N_ROWS; row++)
        tokens[row] = PLACES[row].token, positions[row] = PLACES[row].position, slots[row] = PLACES[row].slot;
    Guarded<float> logits(N_ROWS * c.vocab_size);
    gs_decode_call call = {};
    call.layers = layers;
    call.table = table.matrix();
    call.last_norm = last.data();
    call.token_ids = tokens.data();
    call.positions = positions.data();
    call.slots = slots.data();
    call.adapters = c.adapters ? adapters.data() : nullptr;
    call.logits = logits.data();
    call.n_layers = 2;
    call.n_rows = N_ROWS;
    call.capacity = c.n_places;
    call.n_threads = n_threads;
    call.eps = EPS;
    call.embedding_scale = EMBEDDING_SCALE;
    call.cap = CAP;
    call.norm_dtype = c.norm_dtype;
    call.cache_dtype = c.cache_dtype;
    int64_t n_bytes = 0;
    gs_decode_scratch(&call, &n_bytes);
    Guarded<uint8_t> scratch(n_bytes);
    call.scratch = scratch.data();
    gs_decode(&call);
    compare(c, logits, wanted);
}

void test_decode() {
    const int32_t f32 = GS_FLOAT32, bf16 = GS_BFLOAT16;
    for (int64_t n_threads : {1, 3}) {
        for (int32_t cache_dtype : {f32, bf16, GS_INT8})
            for (bool is_shared : {false, true}) {
                check({24, 4, 2, 12, 40, 21, 320, 9, 6, 5.0f, cache_dtype, f32, false, is_shared, false}, n_threads);
                check({32, 3, 1, 64, 64, 21, 301, 291, 290, 0.0f, cache_dtype, bf16, true, is_shared, false}, n_threads);
                check({24, 2, 1, 76, 40, 21, 301, 283, 270, 5.0f, cache_dtype, f32, false, is_shared, false}, n_threads);
                check({40, 4, 2, 20, 70, 21, 301, 12, 6, 5.0f, cache_dtype, bf16, false, is_shared, true}, n_threads);
            }
        // Enough outputs for several pieces, some of which go across the borders of q, k and v.
        check({128, 3, 1, 70, 330, 1003, 301, 9, 6, 5.0f, f32, bf16, true, false, false}, n_threads);
        // Deltas below and above a register's width, and in several turns.
        for (int32_t dtype : {f32, bf16})
            for (const int64_t* adapters : {MIXED, ALIKE, (const int64_t*)nullptr}) {
                check({24, 4, 2, 12, 40, 21, 320, 9, 6, 5.0f, f32, f32, false, false, false, 1, dtype, adapters}, n_threads);
                check({24, 4, 2, 12, 40, 21, 320, 9, 6, 5.0f, f32, f32, false, true, false, 16, dtype, adapters}, n_threads);
                check({40, 4, 2, 20, 70, 21, 301, 12, 6, 5.0f, f32, bf16, false, false, true, 33, dtype, adapters}, n_threads);
            }
        check({1128, 3, 1, 70, 330, 21, 301, 9, 6, 5.0f, f32, bf16, true, false, false, 19, f32, MIXED}, n_threads);
    }
}

void test_await() {
    struct Context {
        int64_t count;
        double made;
    } context = {0, 0.0};
    gs_run_team(2, [](void* data, int32_t thread, int32_t n_threads) {
        Context* c = (Context*)data;
        if (thread == 0) {
            usleep(20000);
            c->made = 7.0;
            __atomic_fetch_add(&c->count, 3, __ATOMIC_RELEASE);
        }
        gs_await(&c->count, 3);
        expect("await", n_threads == 2 ? c->made : 7.0, 7.0, GS_FLOAT32);
    }, &context);
}

const Test TESTS[] = {{"decode", test_decode}, {"await", test_await}};

}  // namespace
