// Tensors into the operands of attention_units.inl, and sums back into tensors.

// Memory of one thread that grows and is kept: fresh pages are slow to touch on virtual machines.
struct Scratch {
    char* data = nullptr;
    int64_t size = 0;
    ~Scratch() { free(data); }
    char* at_least(int64_t wanted) {
        if (wanted > size) {
            free(data);
            data = nullptr;
            if (posix_memalign((void**)&data, 64, (size_t)wanted)) abort();
            size = wanted;
        }
        return data;
    }
};

// Memory of the process, for one call at a time; a call that comes while another has it gets its own.
struct SharedScratch {
    char* data;
    bool is_ours;
    static inline Scratch kept;
    static inline int is_taken = 0;

    explicit SharedScratch(int64_t size) : data(nullptr), is_ours(false) {
        if (!size) return;
        is_ours = !__atomic_exchange_n(&is_taken, 1, __ATOMIC_ACQUIRE);
        if (is_ours) data = kept.at_least(size);
        else if (posix_memalign((void**)&data, 64, (size_t)size)) abort();
    }
    ~SharedScratch() {
        if (is_ours) __atomic_store_n(&is_taken, 0, __ATOMIC_RELEASE);
        else free(data);
    }
};

// Hands out pieces of a scratch one after the other; from null it only counts them.
struct Pieces {
    char* base;
    int64_t used;
    float* floats(int64_t n) {
        float* piece = base ? (float*)(base + used) : nullptr;
        used += (n * 4 + 63) / 64 * 64;
        return piece;
    }
};

static inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
static inline int64_t round_down(int64_t n, int64_t step) { return n / step * step; }

// Write `n` elements to a row of `width`, zeros behind them.
[[maybe_unused]] static void pack_row(const float* from, float* to, int64_t n, int64_t width, Floats) {
    memcpy(to, from, n * sizeof(float));
    memset(to + n, 0, (width - n) * sizeof(float));
}
[[maybe_unused]] static void pack_row(const bf16* from, float* to, int64_t n, int64_t width, Floats) {
    over(n, [&](int64_t i) { vstore(to + i, vload(from + i)); },
         [&](int64_t i, int64_t rest) { store_n(to + i, load_n(from + i, rest), rest); });
    memset(to + n, 0, (width - n) * sizeof(float));
}
template <class Units>
static void pack_row(const bf16* from, float* to, int64_t n, int64_t width, Units) {
    memcpy(to, from, n * sizeof(bf16));
    memset((char*)to + n * sizeof(bf16), 0, (width - n) * sizeof(bf16));
}

// Turn packed rows [n_rows][width] (a left operand that sums over the width) into the right operand that sums over rows.
template <class Units>
static void interleave(const float* rows, float* right, int64_t n_rows, int64_t width) {
    if (Units::PER_UNIT == 1) {
        memcpy(right, rows, n_rows * width * sizeof(float));
        return;
    }
    for (int64_t row = 0; row < n_rows; row += 2) {
        const char *even = (const char*)rows + row * width * 2, *odd = even + width * 2;
        char* to = (char*)right + row * width * 2;
        for (int64_t i = 0; i < width; i++) {
            memcpy(to + 4 * i, even + 2 * i, 2);
            memcpy(to + 4 * i + 2, odd + 2 * i, 2);
        }
    }
}

#if defined(__AVX512F__)
static inline void transpose_square(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
    __m512 a[16], b[16];
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_ps(from + i * from_stride);
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            __m512d first = (__m512d)b[i + j], second = (__m512d)b[i + j + 2];
            a[i + 2 * j] = (__m512)_mm512_unpacklo_pd(first, second);
            a[i + 2 * j + 1] = (__m512)_mm512_unpackhi_pd(first, second);
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; j++) {
            b[i + j] = _mm512_shuffle_f32x4(a[i + j], a[i + j + 4], 0x88);
            b[i + j + 4] = _mm512_shuffle_f32x4(a[i + j], a[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        _mm512_storeu_ps(to + j * to_stride, _mm512_shuffle_f32x4(b[j], b[j + 8], 0x88));
        _mm512_storeu_ps(to + (j + 8) * to_stride, _mm512_shuffle_f32x4(b[j], b[j + 8], 0xdd));
    }
}
#else
static inline void transpose_square(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
    for (int64_t i = 0; i < 16; i++)
        for (int64_t j = 0; j < 16; j++) memcpy(to + j * to_stride + i, from + i * from_stride + j, sizeof(float));
}
#endif

// to [n_columns][n_rows] = from [n_rows][n_columns], in squares of 16.
static void transpose(const float* from, float* to, int64_t n_rows, int64_t n_columns) {
    for (int64_t row = 0; row < n_rows; row += 16)
        for (int64_t column = 0; column < n_columns; column += 16)
            transpose_square(from + row * n_columns + column, n_columns, to + column * n_rows + row, n_rows);
}

// Where a gradient goes: partial sums of float32 until the last part, then the tensor itself.
template <class T>
struct Sink {
    T* out;
    float* sum;
    int64_t row_stride;
    bool is_first, is_last;

    void put(int64_t row, const float* part, int64_t n, float factor) const {
        T* to = out + row * row_stride;
        float* kept = sum + row * row_stride;
        auto piece = [&](int64_t i, int64_t rest) {
            vf x = load(part + i, rest) * vset(factor);
            if (!is_first) x = x + load(kept + i, rest);
            if (is_last) store(to + i, x, rest);
            else store(kept + i, x, rest);
        };
        over(n, [&](int64_t i) { piece(i, W); }, piece);
    }
};
