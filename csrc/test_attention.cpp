// Attention against plain double arithmetic, part of the program of test_kernels.cpp. Its tile products run here with
// the tile instructions spelled out, so that all of the AMX path but its eight instructions is tested anywhere.
#include <initializer_list>

#include "simd_portable.h"
#include "test_support.h"
#include "threads.h"

namespace {
#include "math.inl"
#include "tile_registers.inl"
#include "test_tiles.h"
#include "attention_units.inl"
#include "attention_tiles.inl"
#include "attention_pack.inl"
#include "attention_weights.inl"
#include "attention_forward.inl"
#include "attention_backward.inl"

struct Problem {
    int64_t n_tokens, n_heads, n_kv_heads, head_dim;
    float scale, cap;
    int32_t dtype;
    // Tokens see at most `window` keys, not beyond their document's start, and every `blind`th sees none.
    int64_t window, document, blind;

    size_t n_queries() const { return n_tokens * n_heads * head_dim; }
    size_t n_keys() const { return n_tokens * n_kv_heads * head_dim; }
    int32_t first(int64_t t) const {
        if (blind && t % blind == 1) return (int32_t)t + 1;
        int64_t start = t / document * document, reach = t - window + 1;
        return (int32_t)(start > reach ? start : reach);
    }
};

typedef void (*Kernel)(const gs_attention_call*);

// Every tensor of one call, between forbidden pages.
struct Tensors {
    Numbers q, k, v, grad, out, dq, dk, dv;
    Guarded<int32_t> first;
    Guarded<float> logsumexp;
    gs_attention_call call;

    explicit Tensors(const Problem& p)
        : q(p.n_queries(), p.dtype, 2.0f, 1), k(p.n_keys(), p.dtype, 2.0f, 2), v(p.n_keys(), p.dtype, 1.0f, 3),
          grad(p.n_queries(), p.dtype, 1.0f, 4), out(p.n_queries(), p.dtype), dq(p.n_queries(), p.dtype),
          dk(p.n_keys(), p.dtype), dv(p.n_keys(), p.dtype), first(p.n_tokens), logsumexp(p.n_tokens * p.n_heads) {
        for (int64_t t = 0; t < p.n_tokens; t++) first[t] = p.first(t);
        int64_t h = p.head_dim, wide = p.n_heads * h, narrow = p.n_kv_heads * h;
        call = {{q.data(), wide, h}, {k.data(), narrow, h}, {v.data(), narrow, h}, {grad.data(), wide, h},
                first.data(), out.data(), logsumexp.data(), dq.data(), dk.data(), dv.data(),
                p.n_tokens, p.n_heads, p.n_kv_heads, h, p.scale, p.cap, p.dtype};
    }
};

// Plain attention in doubles; gradients are those of the definition, with the true output in place of ours.
struct Wanted {
    std::vector<double> out, dq, dk, dv, logsumexp;

    Wanted(const Problem& p, Tensors& x)
        : out(p.n_queries()), dq(p.n_queries()), dk(p.n_keys()), dv(p.n_keys()), logsumexp(p.n_tokens * p.n_heads) {
        for (int64_t t = 0; t < p.n_tokens; t++)
            for (int64_t n = 0; n < p.n_heads; n++) fill(p, x, t, n);
    }

    void fill(const Problem& p, Tensors& x, int64_t t, int64_t n) {
        int64_t h = p.head_dim, query = (t * p.n_heads + n) * h, head = n / (p.n_heads / p.n_kv_heads);
        std::vector<double> weights(p.n_tokens), slopes(p.n_tokens), dweights(p.n_tokens);
        double total = 0, overlap = 0;
        for (int64_t j = x.first[t]; j <= t; j++) {
            int64_t key = (j * p.n_kv_heads + head) * h;
            double score = 0;
            for (int64_t i = 0; i < h; i++) score += x.q[query + i] * x.k[key + i] * p.scale;
            double bent = p.cap ? tanh(score / p.cap) : 0;
            slopes[j] = p.scale * (1 - bent * bent);
            weights[j] = exp(p.cap ? p.cap * bent : score);
            total += weights[j];
        }
        logsumexp[n * p.n_tokens + t] = log(total);
        for (int64_t j = x.first[t]; j <= t; j++) {
            int64_t key = (j * p.n_kv_heads + head) * h;
            weights[j] /= total;
            for (int64_t i = 0; i < h; i++) {
                out[query + i] += weights[j] * x.v[key + i];
                dv[key + i] += weights[j] * x.grad[query + i];
                dweights[j] += x.grad[query + i] * x.v[key + i];
            }
            overlap += weights[j] * dweights[j];
        }
        for (int64_t j = x.first[t]; j <= t; j++) {
            int64_t key = (j * p.n_kv_heads + head) * h;
            double dscore = weights[j] * (dweights[j] - overlap) * slopes[j];
            for (int64_t i = 0; i < h; i++) {
                dq[query + i] += dscore * x.k[key + i];
                dk[key + i] += dscore * x.q[query + i];
            }
        }
    }
};

void compare(const char* what, Numbers& found, const std::vector<double>& wanted, int32_t dtype) {
    double size = 0;
    for (double x : wanted) size += x * x;
    size = sqrt(size / (double)wanted.size());
    for (size_t i = 0; i < wanted.size(); i++) expect(what, found[i], wanted[i], dtype, 3 * size + 0.1);
}

void check(const Problem& p, Kernel forward, Kernel backward) {
    Tensors x(p);
    Wanted wanted(p, x);
    forward(&x.call);
    compare("attention", x.out, wanted.out, p.dtype);
    for (size_t i = 0; i < wanted.logsumexp.size(); i++) {
        bool sees = wanted.logsumexp[i] > -INFINITY;
        if (sees) expect("logsumexp", x.logsumexp[i], wanted.logsumexp[i], p.dtype);
        else if (x.logsumexp[i] != -INFINITY) expect("logsumexp of nothing", 0, 1, p.dtype);
    }
    if (!backward) return;
    backward(&x.call);
    compare("dq", x.dq, wanted.dq, p.dtype);
    compare("dk", x.dk, wanted.dk, p.dtype);
    compare("dv", x.dv, wanted.dv, p.dtype);
}

const Problem PROBLEMS[] = {
    // tokens, heads, kv heads, head_dim, scale, cap, dtype, window, document, blind
    {1, 1, 1, 1, 1.0f, 0.0f, 0, 1000, 1000, 0},    {17, 2, 1, 8, 0.3f, 50.0f, 0, 1000, 9, 0},
    {130, 4, 2, 40, 0.2f, 2.0f, 0, 50, 1000, 5},   {65, 3, 1, 33, 0.2f, 100.0f, 0, 1000, 1000, 0},
    {600, 1, 1, 16, 0.3f, 5.0f, 0, 1000, 1000, 0}, {1, 2, 2, 3, 1.0f, 50.0f, 1, 1000, 1000, 0},
    {17, 2, 1, 8, 0.3f, 0.0f, 1, 1000, 9, 0},      {130, 4, 2, 40, 0.2f, 2.0f, 1, 50, 1000, 5},
    {65, 4, 1, 96, 0.1f, 50.0f, 1, 1000, 1000, 0}, {600, 1, 1, 16, 0.3f, 5.0f, 1, 1000, 1000, 0},
};

void test_attention() {
    for (const Problem& problem : PROBLEMS) check(problem, gs_attention, nullptr);
}

void test_attention_backward() {
    for (const Problem& problem : PROBLEMS) check(problem, gs_attention, gs_attention_backward);
}

template <bool IS_CAPPED>
void forward_by_tiles(const gs_attention_call* call) { forward<bf16, Tiles<EmulatedTiles>, IS_CAPPED>(*call); }
template <bool IS_CAPPED>
void backward_by_tiles(const gs_attention_call* call) { backward<bf16, Tiles<EmulatedTiles>, IS_CAPPED>(*call); }

// The same whichever instruction set is selected.
void test_attention_by_tiles() {
    for (const Problem& problem : PROBLEMS) {
        if (problem.dtype != GS_BFLOAT16 || strcmp(gs_isa(), "portable")) continue;
        if (problem.cap) check(problem, forward_by_tiles<true>, backward_by_tiles<true>);
        else check(problem, forward_by_tiles<false>, backward_by_tiles<false>);
    }
}

const Test TESTS[] = {{"attention", test_attention},
                      {"attention_backward", test_attention_backward},
                      {"attention_by_emulated_tiles", test_attention_by_tiles}};

}  // namespace
