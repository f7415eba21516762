// Attention of many tokens to caches, in the form of kernels.h.
#pragma once

#include <stdint.h>

#include "attention.h"

// Tokens of one document that follow each other: rows [start, stop) of the pass, the first at `position`.
struct gs_segment {
    int64_t start, stop, slot, position;
};

struct gs_cached_attention_call {
    gs_heads q;
    const void *keys, *values;                // [slots, n_kv_heads, n_places, head_dim]; position p lies at p % n_places
    const float *key_scales, *value_scales;   // [slots, n_kv_heads, n_places], for caches of 8 bits
    const gs_segment* segments;               // their own keys are in the cache already
    void* out;                                // [tokens, n_heads, head_dim]
    int64_t n_segments, n_heads, n_kv_heads, head_dim, n_places;
    int64_t window;    // keys a query sees, its own included; 0 is all
    float scale, cap;  // cap 0 is none
    int32_t dtype, cache_dtype;
};

#define GS_CACHED_ATTENTION_KERNELS(KERNEL)                                                            \
    /* ops.plain_attention of each segment under layout.visible. A document's last window - 1 + n keys \
       have to be in the cache, n being the segment's tokens. */                                       \
    KERNEL(cached_attention, (const gs_cached_attention_call* call), (call))
