// RMSNorm with Gemma's offset of one. Included by unit.inl.

template <class T>
static inline float root_scale(const T* x, int64_t width, float eps) {
    vf sums[4] = {vzero(), vzero(), vzero(), vzero()};
    int64_t i = 0;
    for (; i + 4 * W <= width; i += 4 * W)
        for (int j = 0; j < 4; j++) {
            vf a = vload(x + i + j * W);
            sums[j] = vfma(a, a, sums[j]);
        }
    over(width - i, [&](int64_t k) { vf a = vload(x + i + k); sums[0] = vfma(a, a, sums[0]); },
         [&](int64_t k, int64_t n) { vf a = load_n(x + i + k, n); sums[1] = vfma(a, a, sums[1]); });
    float mean = hsum((sums[0] + sums[1]) + (sums[2] + sums[3])) / (float)width;
    return 1.0f / sqrtf(mean + eps);
}

template <class T, class U>
static void norm_rows(const T* x, const U* weight, const T* residual, T* out, int64_t n_rows, int64_t width,
                      float eps) {
    share_out(n_rows, 1 + 16384 / (width + 1), [&](int64_t begin, int64_t end, int32_t) {
        for (int64_t row = begin; row < end; row++) {
            const T* in = x + row * width;
            const T* old = residual ? residual + row * width : nullptr;
            T* to = out + row * width;
            vf scale = vset(root_scale(in, width, eps));
            auto piece = [&](int64_t i, int64_t n) {
                vf y = load(in + i, n) * scale * (vset(1.0f) + load(weight + i, n));
                if (old) y = load(old + i, n) + as_held(in, y);
                store(to + i, y, n);
            };
            over(width, [&](int64_t i) { piece(i, W); }, piece);
        }
    });
}

// dx = scale * (g - x * scale^2 * mean(g * x)) with g = grad * (1 + weight); dweight += grad * x * scale.
template <class T, class U>
static void norm_row_backward(const T* grad, const T* x, const U* weight, T* dx, float* dweight, int64_t width,
                              float eps) {
    float scale = root_scale(x, width, eps);
    vf dots[2] = {vzero(), vzero()};
    auto dot = [&](int64_t i, int64_t n, int which) {
        vf g = load(grad + i, n) * (vset(1.0f) + load(weight + i, n));
        dots[which] = vfma(g, load(x + i, n), dots[which]);
    };
    over(width, [&](int64_t i) { dot(i, W, (i / W) & 1); }, [&](int64_t i, int64_t n) { dot(i, n, 0); });
    vf wide = vset(scale), back = vset(hsum(dots[0] + dots[1]) / (float)width * scale * scale);
    auto piece = [&](int64_t i, int64_t n) {
        vf a = load(x + i, n), g = load(grad + i, n);
        vf y = g * (vset(1.0f) + load(weight + i, n)) - a * back;
        store(dx + i, y * wide, n);
        store(dweight + i, vfma(g, a * wide, load(dweight + i, n)), n);
    };
    over(width, [&](int64_t i) { piece(i, W); }, piece);
}

template <class T, class U>
static void norm_rows_backward(const T* grad, const T* x, const U* weight, T* dx, float* dweight, float* parts,
                               int64_t n_rows, int64_t width, float eps) {
    int64_t n_parts = n_rows < GS_NORM_PARTS ? n_rows : GS_NORM_PARTS;
    share_out(n_parts, 1, [&](int64_t begin, int64_t end, int32_t) {
        for (int64_t part = begin; part < end; part++) {
            float* sum = parts + part * width;
            memset(sum, 0, width * sizeof(float));
            for (int64_t row = n_rows * part / n_parts; row < n_rows * (part + 1) / n_parts; row++) {
                int64_t at = row * width;
                norm_row_backward(grad + at, x + at, weight, dx + at, sum, width, eps);
            }
        }
    });
    for (int64_t i = 0; i < width; i++) dweight[i] = 0.0f;
    for (int64_t part = 0; part < n_parts; part++)
        for (int64_t i = 0; i < width; i++) dweight[i] += parts[part * width + i];
}

static void rms_norm(const void* x, const void* weight, const void* residual, void* out, int64_t n_rows,
                     int64_t width, float eps, int32_t dtype, int32_t weight_dtype) {
    bool narrow_x = dtype == GS_BFLOAT16, narrow_w = weight_dtype == GS_BFLOAT16;
    auto run = [&](auto tx, auto tw) {
        typedef decltype(tx) T;
        typedef decltype(tw) U;
        norm_rows((const T*)x, (const U*)weight, (const T*)residual, (T*)out, n_rows, width, eps);
    };
    if (narrow_x) narrow_w ? run(bf16{}, bf16{}) : run(bf16{}, 0.0f);
    else narrow_w ? run(0.0f, bf16{}) : run(0.0f, 0.0f);
}

static void rms_norm_backward(const void* grad, const void* x, const void* weight, void* dx, float* dweight,
                              float* parts, int64_t n_rows, int64_t width, float eps, int32_t dtype,
                              int32_t weight_dtype) {
    bool narrow_x = dtype == GS_BFLOAT16, narrow_w = weight_dtype == GS_BFLOAT16;
    auto run = [&](auto tx, auto tw) {
        typedef decltype(tx) T;
        typedef decltype(tw) U;
        norm_rows_backward((const T*)grad, (const T*)x, (const U*)weight, (T*)dx, dweight, parts, n_rows, width,
                           eps);
    };
    if (narrow_x) narrow_w ? run(bf16{}, bf16{}) : run(bf16{}, 0.0f);
    else narrow_w ? run(0.0f, bf16{}) : run(0.0f, 0.0f);
}
