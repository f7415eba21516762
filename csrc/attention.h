// Kernels of attention, in the form of kernels.h.
#pragma once

#include <stdint.h>
#include <stdlib.h>

// A tensor [tokens, heads, head_dim] whose last axis is contiguous.
struct gs_heads {
    const void* data;
    int64_t token_stride, head_stride;
};

// All tokens lie on one axis; query t sees the keys first[t] <= j <= t, and none where first[t] > t.
struct gs_attention_call {
    gs_heads q, k, v, grad;  // grad, that of out, and what follows `out`: only for the backward pass
    const int32_t* first;
    void* out;         // [tokens, heads, head_dim], contiguous as everything below
    float* logsumexp;  // [heads, tokens], of the scores a query sees; -infinity where it sees none
    void *dq, *dk, *dv;
    int64_t n_tokens, n_heads, n_kv_heads, head_dim;
    float scale, cap;  // cap 0 is none
    int32_t dtype;
};

#define GS_ATTENTION_KERNELS(KERNEL)                                                              \
    /* ops.plain_attention under that mask: out and logsumexp. */                                 \
    KERNEL(attention, (const gs_attention_call* call), (call))                                         \
    /* Its gradients dq, dk and dv. */                                                            \
    KERNEL(attention_backward, (const gs_attention_call* call), (call))
