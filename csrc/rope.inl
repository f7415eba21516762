// Rotary positions: the pair (i, i + head_dim / 2) of a head turned by its angle. Included by unit.inl.

template <class T>
static void rotate_tokens(const T* x, const float* cosine, const float* sine, T* out, int64_t n_tokens,
                          int64_t n_heads, int64_t head_dim, int64_t token_stride, int64_t head_stride, float factor,
                          float direction) {
    int64_t half = head_dim / 2;
    vf by = vset(factor), turned = vset(factor * direction);
    share_out(n_tokens, 1 + 16384 / (n_heads * head_dim + 1), [&](int64_t begin, int64_t end, int32_t) {
        for (int64_t token = begin; token < end; token++)
            for (int64_t head = 0; head < n_heads; head++) {
                const T* in = x + token * token_stride + head * head_stride;
                T* to = out + (token * n_heads + head) * head_dim;
                const float *c = cosine + token * half, *s = sine + token * half;
                auto piece = [&](int64_t i, int64_t n) {
                    vf a = load(in + i, n), b = load(in + half + i, n);
                    vf cos = load(c + i, n) * by, sin = load(s + i, n) * turned;
                    store(to + i, a * cos - b * sin, n);
                    store(to + half + i, b * cos + a * sin, n);
                };
                over(half, [&](int64_t i) { piece(i, W); }, piece);
            }
    });
}

static void rotate(const void* x, const float* cosine, const float* sine, void* out, int64_t n_tokens,
                   int64_t n_heads, int64_t head_dim, int64_t token_stride, int64_t head_stride, float factor,
                   float direction, int32_t dtype) {
    auto run = [&](auto type) {
        typedef decltype(type) T;
        rotate_tokens((const T*)x, cosine, sine, (T*)out, n_tokens, n_heads, head_dim, token_stride, head_stride,
                      factor, direction);
    };
    dtype == GS_BFLOAT16 ? run(bf16{}) : run(0.0f);
}
