// Numbers of sampling: order of floats as integers, shares of probability, noise. Included by sample.inl.

constexpr int64_t PICK_PAGE = GS_PICK_PAGE;
constexpr uint32_t ALL_LANES = (uint32_t)((1ull << W) - 1);
constexpr float LEAST_FINITE = -3.402823466e38f;  // of all finite numbers

template <class To, class From>
static inline To bits_of(From x) {
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To y;
    memcpy(&y, &x, sizeof(y));
    return y;
}

// Integers that are ordered as the floats are; 0 and -0 are equal.
static inline int32_t key_of(float x) {
    int32_t bits = bits_of<int32_t>(x + 0.0f);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}
static inline float number_of(int32_t key) { return bits_of<float>(key ^ ((key >> 31) & 0x7fffffff)); }

// e^value for value <= 0 in units of 2^-40, off by no more than double arithmetic is. Compilers make vectors of it.
static inline int64_t share_of(float value) {
    const double magic = 6755399441055744.0;  // 1.5 * 2^52: a sum with it is rounded to an integer, its lowest bits
    // At least -30, where the share is 0.1 units. Of numbers below 0, those further away have larger bits.
    uint32_t bits = bits_of<uint32_t>(value), most = 0xc1f00000u;
    double x = bits_of<float>(bits < most ? bits : most);
    double shifted = x * 1.4426950408889634 + magic, n = shifted - magic;
    double r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
    double p = 1.0 / 6227020800;  // Taylor's series: the next term is below 5e-18 for |r| <= ln(2) / 2
    p = p * r + 1.0 / 479001600;
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    int64_t exponent = bits_of<int64_t>(shifted) - bits_of<int64_t>(magic) + 40;
    double share = bits_of<double>(bits_of<int64_t>(p) + (int64_t)((uint64_t)exponent << 52));
    return bits_of<int64_t>(share + magic) - bits_of<int64_t>(magic);
}

constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15u;

// infer.noise.scramble.
static inline uint64_t scramble(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

// infer.noise.gumbel of 64 bits of noise.
static inline double gumbel_of(uint64_t bits) {
    float v = (float)(int64_t)(bits >> 1) * 0x1p-63f;
    v = v < 0x1p-64f ? 0x1p-64f : v > 1.0f - 0x1p-24f ? 1.0f - 0x1p-24f : v;
    return -log(-log1p(-(double)v));
}

// A number no larger than 2^23 (log2(v) + 158), but for rounding, with v the share of 2^64 that the bits are: a
// float's bits, read as an integer, are a logarithm that is at most 0.09 too small.
static inline float rough_log(uint64_t bits) {
    return (float)bits_of<int32_t>((float)(int32_t)(bits >> 33));
}
// Noise can lift a value above `best` only where its rough_log is no larger than this: -log(1 - v) is at least v,
// so that v must be below e^(value - best). The last constant is room for rounding.
constexpr float ROUGH_SLOPE = 12102203.2f, ROUGH_START = 158.0f * 8388608.0f + 8192.0f;
