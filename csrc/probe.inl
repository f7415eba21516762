// Probes of a machine's limits; see probe.h. Included after quant.inl and the tiles of attention.

typedef uint64_t probe_words __attribute__((vector_size(64), aligned(8), may_alias));
constexpr int64_t PROBE_CHUNK = 1 << 18;   // rounds after which float32 would no longer count exactly
constexpr int PROBE_SUMS = 12;             // sums at once: enough to hide the latency, few enough for registers
// Sums must stay in registers, whatever the optimisation.
#define GS_PROBE_UNROLLED _Pragma("GCC unroll 12")

static void probe_read(const void* buffer, uint64_t* sum, int64_t n_bytes) {
    const int64_t n_lines = n_bytes / 64, n_words = n_bytes / 8;
    const uint64_t* words = (const uint64_t*)buffer;
    *sum = 0;
    share_out((n_lines + 3) / 4, 1024, [&](int64_t begin, int64_t end, int32_t) {
        probe_words total[4] = {};
        int64_t line = begin * 4, stop = end * 4 < n_lines ? end * 4 : n_lines;
        for (; line + 4 <= stop; line += 4) {
            const char* p = (const char*)(words + line * 8);
            for (int i = 0; i < 4; i++) total[i] += *(const probe_words*)(p + 64 * i);
        }
        uint64_t own = 0;
        for (; line < stop; line++)
            for (int k = 0; k < 8; k++) own += words[line * 8 + k];
        for (int i = 0; i < 4; i++)
            for (int k = 0; k < 8; k++) own += total[i][k];
        __atomic_fetch_add(sum, own, __ATOMIC_RELAXED);
    });
    for (int64_t i = n_lines * 8; i < n_words; i++) *sum += words[i];
}

// Each of these returns the number of products of n <= PROBE_CHUNK rounds. `one` comes from memory the compiler
// knows nothing of, and every sum depends on the one before, so that nothing is worked out ahead of time.

static int64_t probe_float32(int64_t n, const float* one) {
    vf x = vset(*one), sums[PROBE_SUMS];
    for (int i = 0; i < PROBE_SUMS; i++) sums[i] = vzero();
    for (int64_t round = 0; round < n; round++)
        GS_PROBE_UNROLLED
        for (int i = 0; i < PROBE_SUMS; i++) sums[i] = vfma(sums[i], x, x);
    int64_t total = 0;
    for (int i = 0; i < PROBE_SUMS; i++) {
        float lanes[W];
        vstore(lanes, sums[i]);
        for (int64_t k = 0; k < W; k++) total += (int64_t)lanes[k];
    }
    return total;
}

#if defined(__AVX512BF16__)
static int64_t probe_bfloat16(int64_t n, const float* one) {
    __m512bh x = _mm512_cvtne2ps_pbh(_mm512_set1_ps(*one), _mm512_set1_ps(*one));
    vf sums[PROBE_SUMS];
    for (int i = 0; i < PROBE_SUMS; i++) sums[i] = vzero();
    for (int64_t round = 0; round < n; round++)
        GS_PROBE_UNROLLED
        for (int i = 0; i < PROBE_SUMS; i++) sums[i] = _mm512_dpbf16_ps(sums[i], x, x);
    int64_t total = 0;
    for (int i = 0; i < PROBE_SUMS; i++) {
        float lanes[W];
        vstore(lanes, sums[i]);
        for (int64_t k = 0; k < W; k++) total += (int64_t)lanes[k];
    }
    return total;
}
#else
static int64_t probe_bfloat16(int64_t, const float*) { return 0; }
#endif

#if defined(__AVX512BW__) || defined(__AVX2__)
static int64_t probe_int8(int64_t n, const float* one) {
    int8_t four[4] = {(int8_t)*one, (int8_t)*one, (int8_t)*one, (int8_t)*one};
    vi x = iset((int32_t)*one * 0x01010101), sums[PROBE_SUMS];
    for (int i = 0; i < PROBE_SUMS; i++) sums[i] = iset(0);
    for (int64_t round = 0; round < n; round++)
        GS_PROBE_UNROLLED
        for (int i = 0; i < PROBE_SUMS; i++) {
#if defined(__AVX512BW__)
            __asm__("" : "+v"(x));
#else
            __asm__("" : "+x"(x));
#endif
            sums[i] = idot(sums[i], x, four);
        }
    int64_t total = 0;
    for (int i = 0; i < PROBE_SUMS; i++) {
        int32_t lanes[W];
        memcpy(lanes, &sums[i], sizeof lanes);
        for (int64_t k = 0; k < W; k++) total += lanes[k];
    }
    return total;
}
#else
static int64_t probe_int8(int64_t, const float*) { return 0; }
#endif

// Compiled, but like all code for tiles not yet run on a machine that has them.
#if defined(GS_TILE_REGISTERS)
template <bool IS_INT8>
static void probe_tiles_round() {
#define GS_FOUR(instruction)                                       \
    __asm__ volatile(instruction " %%tmm6, %%tmm4, %%tmm0\n\t"     \
                     instruction " %%tmm7, %%tmm4, %%tmm1\n\t"     \
                     instruction " %%tmm6, %%tmm5, %%tmm2\n\t"     \
                     instruction " %%tmm7, %%tmm5, %%tmm3" ::)
    if (IS_INT8) GS_FOUR("tdpbusd");
    else GS_FOUR("tdpbf16ps");
#undef GS_FOUR
}

template <bool IS_INT8>
static int64_t probe_tiles(int64_t n, const float* one) {
    alignas(64) uint32_t ones[256];
    alignas(64) uint32_t square[256];
    for (int i = 0; i < 256; i++) ones[i] = (uint32_t)*one * (IS_INT8 ? 0x01010101u : 0x3f803f80u);
    int64_t total = 0;
    TileRegisters::begin(tile_shapes(16, 16));
    TileRegisters::zero<0>(), TileRegisters::zero<1>(), TileRegisters::zero<2>(), TileRegisters::zero<3>();
    TileRegisters::load<4>(ones, 64), TileRegisters::load<5>(ones, 64);
    TileRegisters::load<6>(ones, 64), TileRegisters::load<7>(ones, 64);
    for (int64_t round = 0; round < n; round++) probe_tiles_round<IS_INT8>();
    auto add_square = [&] {
        for (int i = 0; i < 256; i++) {
            float x;
            memcpy(&x, &square[i], 4);
            total += IS_INT8 ? (int64_t)square[i] : (int64_t)x;
        }
    };
    TileRegisters::store<0>(square, 64), add_square();
    TileRegisters::store<1>(square, 64), add_square();
    TileRegisters::store<2>(square, 64), add_square();
    TileRegisters::store<3>(square, 64), add_square();
    TileRegisters::end();
    return total;
}
#else
template <bool IS_INT8>
static int64_t probe_tiles(int64_t, const float*) { return 0; }
#endif

static void probe_products(int64_t* sum, int64_t n_rounds, int64_t n_threads, int32_t kind) {
    typedef int64_t (*Probe)(int64_t, const float*);
    const Probe probes[] = {probe_float32, probe_bfloat16, probe_int8, probe_tiles<false>, probe_tiles<true>};
    const Probe probe = probes[kind];
    const int64_t chunk = kind < GS_PROBE_BFLOAT16_TILES ? PROBE_CHUNK : PROBE_CHUNK / 16;
    float one = 1.0f;
    __asm__ volatile("" : : "r"(&one) : "memory");
    *sum = 0;
    share_out(n_threads, 1, [&](int64_t begin, int64_t end, int32_t) {
        int64_t own = 0;
        for (int64_t left = (end - begin) * n_rounds; left > 0; left -= chunk)
            own += probe(left < chunk ? left : chunk, &one);
        __atomic_fetch_add(sum, own, __ATOMIC_RELAXED);
    });
}
