// Attention that never stores its scores. Included by unit.inl, once per instruction set.
//
// Everything is turned so that queries run along vectors: a panel of 64 (token, head) pairs that share a key
// head, against tiles of 64 keys. Then the softmax's sums need no exchange between lanes, the weights leave
// their pass as an operand of the next product, and keys and values are the operands spread one by one.
// The output and dq come out turned and are turned back once per panel.
//
// Source: the online softmax, arXiv:1805.02867; attention by tiles, FlashAttention, arXiv:2205.14135.

#include "attention_units.inl"
#include "attention_tiles.inl"
#include "attention_pack.inl"
#include "attention_weights.inl"
#include "attention_forward.inl"
#include "attention_backward.inl"

#if defined(GS_TILE_REGISTERS)
typedef Tiles<GS_TILE_REGISTERS> Bf16Units;
#elif defined(__AVX512BF16__)
typedef Pairs Bf16Units;
#else
typedef Floats Bf16Units;
#endif

static void attention(const gs_attention_call* call) {
    if (call->n_tokens <= 0) return;
    bool is_capped = call->cap > 0.0f;
    if (call->dtype == GS_FLOAT32) (is_capped ? forward<float, Floats, true> : forward<float, Floats, false>)(*call);
    else (is_capped ? forward<bf16, Bf16Units, true> : forward<bf16, Bf16Units, false>)(*call);
}

static void attention_backward(const gs_attention_call* call) {
    if (call->n_tokens <= 0) return;
    bool is_capped = call->cap > 0.0f;
    if (call->dtype == GS_FLOAT32) (is_capped ? backward<float, Floats, true> : backward<float, Floats, false>)(*call);
    else (is_capped ? backward<bf16, Bf16Units, true> : backward<bf16, Bf16Units, false>)(*call);
}
