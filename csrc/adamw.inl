// AdamW over one flat tensor, and the sum of squares that clipping needs. Included by unit.inl.

static void adamw(float* weight, float* exp_avg, float* exp_avg_sq, const void* grad, int64_t n_elements, float decay,
                  float beta1, float beta2, float eps, float step_size, float root_correction, float grad_scale,
                  int32_t grad_dtype) {
    auto run = [&](auto type) {
        typedef decltype(type) T;
        vf keep1 = vset(beta1), add1 = vset(1.0f - beta1), keep2 = vset(beta2), add2 = vset(1.0f - beta2);
        vf shrink = vset(decay), small = vset(eps), rate = vset(step_size), root = vset(1.0f / root_correction);
        vf scale = vset(grad_scale);
        share_out((n_elements + 1023) / 1024, 16, [&](int64_t begin, int64_t end, int32_t) {
            int64_t first = begin * 1024, last = end * 1024 < n_elements ? end * 1024 : n_elements;
            const T* g = (const T*)grad + first;
            float *p = weight + first, *m = exp_avg + first, *v = exp_avg_sq + first;
            auto piece = [&](int64_t i, int64_t n) {
                vf d = load(g + i, n) * scale;
                vf mean = vfma(load(m + i, n), keep1, d * add1);
                vf square = vfma(load(v + i, n), keep2, d * d * add2);
                store(m + i, mean, n);
                store(v + i, square, n);
                store(p + i, load(p + i, n) * shrink - rate * mean / vfma(vsqrt(square), root, small), n);
            };
            over(last - first, [&](int64_t i) { piece(i, W); }, piece);
        });
    };
    grad_dtype == GS_BFLOAT16 ? run(bf16{}) : run(0.0f);
}

template <class T>
static double squares_of_block(const T* x, int64_t n_elements) {
    vd sums[4] = {dzero(), dzero(), dzero(), dzero()};
    over(n_elements, [&](int64_t i) { sums[(i / W) & 3] = dadd_square(sums[(i / W) & 3], vload(x + i)); },
         [&](int64_t i, int64_t n) { sums[0] = dadd_square(sums[0], load_n(x + i, n)); });
    return (dsum(sums[0]) + dsum(sums[1])) + (dsum(sums[2]) + dsum(sums[3]));
}

static void sum_of_squares(const void* x, double* parts, int64_t n_elements, int32_t dtype) {
    auto run = [&](auto type) {
        typedef decltype(type) T;
        share_out((n_elements + GS_SUM_BLOCK - 1) / GS_SUM_BLOCK, 1, [&](int64_t begin, int64_t end, int32_t) {
            for (int64_t block = begin; block < end; block++) {
                int64_t first = block * GS_SUM_BLOCK, left = n_elements - first;
                parts[block] = squares_of_block((const T*)x + first, left < GS_SUM_BLOCK ? left : GS_SUM_BLOCK);
            }
        });
    };
    dtype == GS_BFLOAT16 ? run(bf16{}) : run(0.0f);
}
