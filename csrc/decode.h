// One more token of each of some documents, through the whole network in one call, in the form of kernels.h.
#pragma once

#include <stdint.h>

#define GS_INT8 3  // of caches: a scale for each head's vector at each place

// Low-rank adapters on top of a matrix: to each row of outputs its own one adds scale * B A x.
struct gs_delta {
    const void *lora_a, *lora_b;  // [n_adapters, rank, d_in] and [n_adapters, d_out, rank]
    const void* scale;            // [n_adapters]
    int64_t rank;
    int32_t dtype, scale_dtype;  // of A and B, and of the scale
};

// A matrix [d_out, d_in]: rows of float32 or bfloat16 as they lie, or few bits as quant.h packs them.
struct gs_matrix {
    const void* values;    // null where a layer has none
    const void* scales;    // what follows is for 4 and 8 bits alone, as in gs_quant_call
    const uint8_t* zeros;
    int64_t d_in, d_out, group_units;
    int32_t bits;  // 4, 8, 16 (bfloat16) or 32
    int32_t scale_dtype;
    const gs_delta* delta;  // null where there is none
};

struct gs_decode_layer {
    gs_matrix q, k, v, o, gate, up, down;
    // Weights of norms; null where there is none.
    const void *before_attention, *after_attention, *before_feed_forward, *after_feed_forward, *q_norm, *k_norm;
    const float* frequencies;           // [head_dim / 2], radians per position
    void *keys, *values;                // [slots, n_kv_heads, n_places, head_dim]; position p lies at p % n_places
    float *key_scales, *value_scales;   // [slots, n_kv_heads, n_places], for caches of 8 bits
    int64_t n_heads, n_kv_heads, head_dim, n_places;
    int64_t window;    // 0 sees everything
    float scale, cap;  // cap 0 is none
};

struct gs_decode_call {
    const gs_decode_layer* layers;
    gs_matrix table;  // embedding and head
    const void* last_norm;
    const int64_t *token_ids, *positions, *slots;  // [n_rows], no slot twice
    const int64_t* adapters;                       // [n_rows], below 0 for none; null takes number 0 for all
    float* logits;                                 // [n_rows, table.d_out]
    void* scratch;                                 // as gs_decode_scratch says
    int64_t n_layers, n_rows, capacity, n_threads;  // capacity: positions lie below it
    float eps, embedding_scale, cap;
    int32_t norm_dtype, cache_dtype;
};

#define GS_DECODE_KERNELS(KERNEL)                                                                       \
    /* Transformer.hidden and .logits for one token a document, in float32 between the matrices. */     \
    KERNEL(decode, (const gs_decode_call* call), (call))                                                \
    /* y = x W^T for few rows; x and y float32, W in `dtype`. */                                         \
    KERNEL(dense_linear,                                                                                \
           (const float* x, const void* weights, float* y, int64_t n_rows, int64_t d_in, int64_t d_out, \
            int32_t dtype),                                                                             \
           (x, weights, y, n_rows, d_in, d_out, dtype))                                                 \
    KERNEL(decode_scratch, (const gs_decode_call* call, int64_t* n_bytes), (call, n_bytes))
