// Choosing a token from scores, in the form of kernels.h.
#pragma once

#include <stdint.h>

// Scores are looked through in pages of this many.
#define GS_PICK_PAGE 64
// Bytes of scratch for each page of a row.
#define GS_PICK_SCRATCH (GS_PICK_PAGE * 20 + 16)

// What rows have seen: infer.penalties.History, and a list of it that need not be searched for.
struct gs_history {
    uint8_t* seen;       // [n_rows, vocab_size]
    float* counts;       // [n_rows, vocab_size]
    int32_t* token_ids;  // [n_rows, vocab_size]: those seen, each once
    int64_t* lengths;    // [n_rows]: how many these are
    int64_t n_rows, vocab_size;
};

struct gs_pick_call {
    const float* logits;                 // [n_rows, vocab_size], row_stride apart
    const int64_t *streams, *positions;  // [n_rows]
    int64_t* chosen;                     // [n_rows]
    const gs_history* history;           // null where nothing is penalized
    const int64_t* bias_ids;             // [n_biases], below vocab_size, each once
    const float* biases;
    void* scratch;  // n_strips * pages * GS_PICK_SCRATCH bytes, the address a multiple of 8
    int64_t n_rows, vocab_size, row_stride, n_biases;
    int64_t n_strips;  // rows are shared out into so many parts
    int64_t top_k;     // vocab_size or more keeps all
    double top_p;      // 1 keeps all
    float temperature; // 0 is greedy
    float lowest;      // logarithm of min_p
    float repetition, presence, frequency;
};

#define GS_SAMPLE_KERNELS(KERNEL)                                                                             \
    /* infer.sample.plain_pick */                                                                             \
    KERNEL(pick, (const gs_pick_call* call), (call))                                                          \
    /* infer.penalties.History.add: one token per row. */                                                     \
    KERNEL(record_tokens, (const gs_history* history, const int64_t* token_ids), (history, token_ids))
