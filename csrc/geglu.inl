// gelu(gate) * up with the tanh form of GELU. Included by unit.inl.

// The share of x that gelu keeps, (1 + tanh(z / 2)) / 2 = 1 / (1 + e^-z), and its slope along z.
static inline vf gelu_share(vf x, vf* slope) {
    vf z = x * vfma(x * x, vset(0.0713548162726f), vset(1.59576912160573f));  // 2 sqrt(2 / pi) (x + 0.044715 x^3)
    vf e = vexp(vmin(vset(88.0f), vzero() - z));  // finite, as vinverse needs it; the share is next to nothing by then
    vf share = vinverse(vset(1.0f) + e);
    *slope = share * (share * e);
    return share;
}

static void gated_gelu(const void* gate, const void* up, void* out, int64_t n_rows, int64_t width,
                       int64_t gate_stride, int64_t up_stride, int32_t dtype) {
    auto run = [&](auto type) {
        typedef decltype(type) T;
        share_out(n_rows, 1 + 8192 / (width + 1), [&](int64_t begin, int64_t end, int32_t) {
            for (int64_t row = begin; row < end; row++) {
                const T *g = (const T*)gate + row * gate_stride, *u = (const T*)up + row * up_stride;
                T* to = (T*)out + row * width;
                auto piece = [&](int64_t i, int64_t n) {
                    vf x = load(g + i, n), bend, share = gelu_share(x, &bend);
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
        share_out(n_rows, 1 + 8192 / (width + 1), [&](int64_t begin, int64_t end, int32_t) {
            for (int64_t row = begin; row < end; row++) {
                const T *g = (const T*)gate + row * gate_stride, *u = (const T*)up + row * up_stride;
                const T* given = (const T*)grad + row * grad_stride;
                T *to_gate = (T*)dgate + row * out_stride, *to_up = (T*)dup + row * out_stride;
                auto piece = [&](int64_t i, int64_t n) {
                    vf x = load(g + i, n), d = load(given + i, n), bend, share = gelu_share(x, &bend);
                    vf steepness = vfma(x * x, vset(0.2140644488178f), vset(1.59576912160573f));  // dz / dx
                    vf slope = vfma(x * bend, steepness, share);
                    store(to_up + i, d * as_held(g, x * share), n);
                    store(to_gate + i, d * load(u + i, n) * slope, n);
                };
                over(width, [&](int64_t i) { piece(i, W); }, piece);
            }
        });
    };
    dtype == GS_BFLOAT16 ? run(bf16{}) : run(0.0f);
}
