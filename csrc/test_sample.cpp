// Choosing tokens against a sort of all of them, over buffers that touch a forbidden page.
#include <algorithm>
#include <initializer_list>
#include <numeric>

#include "test_support.h"

namespace {

struct Setting {
    int64_t top_k;
    double top_p;
    float temperature, min_p, repetition;
};

uint64_t scrambled(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

double noise(int64_t stream, int64_t position, int64_t token_id) {
    const uint64_t golden = 0x9E3779B97F4A7C15u;
    uint64_t row = scrambled((uint64_t)stream + (uint64_t)(position + 1) * golden);
    uint64_t bits = scrambled(row + (uint64_t)(token_id + 1) * golden);
    double v = (float)(int64_t)(bits >> 1) * 0x1p-63f;
    return -log(-log1p(-std::min(std::max(v, 0x1p-64), 1 - 0x1p-24)));
}

// The token that a sort of the whole row leads to.
int64_t slow_pick(const std::vector<float>& scores, const Setting& s, int64_t stream, int64_t position) {
    std::vector<int64_t> order(scores.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
    float best = scores[order[0]];
    if (s.temperature == 0) return order[0];
    size_t n = std::min((size_t)s.top_k, order.size());
    while (n < order.size() && scores[order[n]] == scores[order[n - 1]]) n++;
    auto value = [&](size_t i) { return (scores[order[i]] - best) / s.temperature; };
    auto share = [&](size_t i) { return (int64_t)nearbyint(exp((double)value(i)) * 0x1p40); };
    int64_t total = 0, sum = 0;
    for (size_t i = 0; i < n; i++) total += share(i);
    size_t kept = 0;
    while (kept < n && (kept == 0 || sum < (double)total * s.top_p)) sum += share(kept++);
    while (kept < n && value(kept) == value(kept - 1)) kept++;
    int64_t chosen = -1;
    double most = -INFINITY;
    for (size_t i = 0; i < kept; i++) {
        if (s.min_p > 0 && value(i) < logf(s.min_p)) continue;
        double noisy = value(i) + noise(stream, position, order[i]);
        if (noisy > most) chosen = order[i], most = noisy;
    }
    return chosen;
}

void check_pick(int64_t n_rows, int64_t vocab_size, const Setting& s, bool has_ties) {
    const int64_t stride = vocab_size + 3;
    Numbers logits(stride * (n_rows - 1) + vocab_size, GS_FLOAT32, has_ties ? 2.0f : 9.0f, (uint32_t)vocab_size);
    if (has_ties)
        for (int64_t i = 0; i < stride * (n_rows - 1) + vocab_size; i++) logits.set(i, roundf((float)logits[i]));
    Guarded<int64_t> streams(n_rows), positions(n_rows), chosen(n_rows), token(n_rows), lengths(n_rows), bias_id(1);
    Guarded<uint8_t> seen(n_rows * vocab_size), scratch(2 * ((vocab_size + 63) / 64) * GS_PICK_SCRATCH);
    Guarded<float> counts(n_rows * vocab_size), bias(1);
    Guarded<int32_t> token_ids(n_rows * vocab_size);
    memset(seen.data(), 0, seen.size());
    memset(counts.data(), 0, counts.size() * sizeof(float));
    for (int64_t row = 0; row < n_rows; row++) {
        streams[row] = row * 1234567 - 99;
        positions[row] = row + 5;
        lengths[row] = 0;
    }
    gs_history history = {seen.data(), counts.data(), token_ids.data(), lengths.data(), n_rows, vocab_size};
    for (int64_t step = 0; step < 5; step++) {
        for (int64_t row = 0; row < n_rows; row++) token[row] = (row + step * step * 7) % vocab_size;
        gs_record_tokens(&history, token.data());
    }
    bias_id[0] = vocab_size - 1;
    bias[0] = 0.5f;
    gs_pick_call call = {};
    call.logits = (const float*)logits.data();
    call.streams = streams.data(), call.positions = positions.data(), call.chosen = chosen.data();
    call.history = &history, call.bias_ids = bias_id.data(), call.biases = bias.data(), call.scratch = scratch.data();
    call.n_rows = n_rows, call.vocab_size = vocab_size, call.row_stride = stride;
    call.n_biases = 1, call.n_strips = n_rows > 1 ? 2 : 1, call.top_k = s.top_k, call.top_p = s.top_p;
    call.temperature = s.temperature, call.lowest = s.min_p > 0 ? logf(s.min_p) : -INFINITY;
    call.repetition = s.repetition, call.presence = 0.25f, call.frequency = 0.125f;
    gs_pick(&call);
    for (int64_t row = 0; row < n_rows; row++) {
        std::vector<float> scores(vocab_size);
        int64_t n_seen = 0;
        for (int64_t i = 0; i < vocab_size; i++) {
            float x = (float)logits[row * stride + i] + (i == bias_id[0] ? 0.5f : 0.0f);
            n_seen += seen[row * vocab_size + i];
            if (seen[row * vocab_size + i]) {
                x = x < 0 ? (float)((double)x * s.repetition) : x / s.repetition;
                x = x - 0.25f - 0.125f * counts[row * vocab_size + i];
            }
            scores[i] = x;
        }
        expect("record_tokens", (double)lengths[row], (double)n_seen, 0);
        int64_t wanted = slow_pick(scores, s, streams[row], positions[row]);
        expect("pick", (double)chosen[row], (double)wanted, 0);
    }
}

void test_pick() {
    const int64_t all = 1ll << 62;
    const Setting settings[] = {
        {all, 1.0, 0.0f, 0.0f, 1.3f},  {all, 1.0, 1.0f, 0.0f, 1.0f},     {50, 0.95, 0.8f, 0.0f, 1.1f},
        {all, 0.9, 1.5f, 0.01f, 0.9f}, {3, 0.999, 1e-3f, 0.0f, 1.0f},    {all, 0.999, 20.0f, 0.0f, 1.0f},
        {200, 1.0, 3.0f, 0.1f, 1.0f},  {all, 1e-9, 1e-40f, 1e-30f, 1.0f}};
    for (const Setting& s : settings)
        for (int64_t vocab_size : {1, 2, 17, 64, 65, 700, 5000})
            for (bool has_ties : {false, true}) check_pick(vocab_size > 1000 ? 1 : 3, vocab_size, s, has_ties);
}

const Test TESTS[] = {{"pick", test_pick}};

}  // namespace
