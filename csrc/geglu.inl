// gelu(gate) * up with the tanh form of GELU. Included by unit.inl.

// 0.5 * (1 + tanh(inner)), which gelu multiplies with x.
static inline vf gelu_share(vf x, vf* tanh_inner) {
    vf inner = x * vset(0.79788456f) * vfma(x * x, vset(0.044715f), vset(1.0f));  // sqrt(2 / pi)
    *tanh_inner = vtanh(inner);
    return vfma(*tanh_inner, vset(0.5f), vset(0.5f));
}

static void gated_gelu(const void* gate, const void* up, void* out, int64_t n_rows, int64_t width,
                       int64_t gate_stride, int64_t up_stride, int32_t dtype) {
    auto run = [&](auto type) {
        typedef decltype(type) T;
        share_out(n_rows, 1 + 8192 / width, [&](int64_t begin, int64_t end, int32_t) {
            for (int64_t row = begin; row < end; row++) {
                const T *g = (const T*)gate + row * gate_stride, *u = (const T*)up + row * up_stride;
                T* to = (T*)out + row * width;
                auto piece = [&](int64_t i, int64_t n) {
                    vf x = load(g + i, n), t, share = gelu_share(x, &t);
                    store(to + i, as_held(g, x * share) * load(u + i, n), n);
                };
                over(width, [&](int64_t i) { piece(i, W); }, piece);
            }
        });
    };
    dtype == GS_BFLOAT16 ? run(bf16{}) : run(0.0f);
}

static void gated_gelu_backward(const void* grad, const void* gate, const void* up, void* dgate, void* dup,
                                int64_t n_rows, int64_t width, int64_t grad_stride, int64_t gate_stride,
                                int64_t up_stride, int64_t out_stride, int32_t dtype) {
    auto run = [&](auto type) {
        typedef decltype(type) T;
        share_out(n_rows, 1 + 8192 / width, [&](int64_t begin, int64_t end, int32_t) {
            for (int64_t row = begin; row < end; row++) {
                const T *g = (const T*)gate + row * gate_stride, *u = (const T*)up + row * up_stride;
                const T* given = (const T*)grad + row * grad_stride;
                T *to_gate = (T*)dgate + row * out_stride, *to_up = (T*)dup + row * out_stride;
                auto piece = [&](int64_t i, int64_t n) {
                    vf x = load(g + i, n), d = load(given + i, n), t, share = gelu_share(x, &t);
                    // The slope of inner is sqrt(2 / pi) * (1 + 3 * 0.044715 * x^2).
                    vf inner = vset(0.79788456f) * vfma(x * x, vset(0.134145f), vset(1.0f));
                    vf slope = vfma(x * vset(0.5f) * (vset(1.0f) - t * t), inner, share);
                    store(to_up + i, d * as_held(g, x * share), n);
                    store(to_gate + i, d * load(u + i, n) * slope, n);
                };
                over(width, [&](int64_t i) { piece(i, W); }, piece);
            }
        });
    };
    dtype == GS_BFLOAT16 ? run(bf16{}) : run(0.0f);
}
