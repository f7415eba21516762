// Functions of vectors, written once for every width, and the loop over a row.

// Call f(offset, n) for the pieces of 0..width: n is W, and less for the last. A full vector takes whole();
// the rest of a row some(n), which must not touch what lies behind it.
template <class Whole, class Some>
static inline void over(int64_t width, const Whole& whole, const Some& some) {
    int64_t i = 0;
    for (; i + W <= width; i += W) whole(i);
    if (W > 1 && i < width) some(i, width - i);
}

// Load and store that take the remainder of a row into account: n is W but for the last piece.
template <class T>
static inline vf load(const T* p, int64_t n) { return n == W ? vload(p) : load_n(p, n); }
template <class T>
static inline void store(T* p, vf x, int64_t n) {
    if (n == W) vstore(p, x);
    else store_n(p, x, n);
}
// As a row of type T would hold it.
static inline vf as_held(const float*, vf x) { return x; }
static inline vf as_held(const bf16*, vf x) { return round_to_bf16(x); }

static inline float first_lane(vf x) { return hsum(keep_n(x, W < 2 ? W : 1, 0.0f)); }

static inline vf vzero() { return vset(0.0f); }

// e^r - 1 for |r| <= ln(2) / 2, off by at most 1.4e-8 of r: a fit of (e^r - 1 - r) / r^2 whose largest error is least.
static inline vf small_expm1(vf r) {
    vf p = vset(1.394649675e-3f);
    p = vfma(p, r, vset(8.366610614e-3f));
    p = vfma(p, r, vset(4.166628140e-2f));
    p = vfma(p, r, vset(1.666654279e-1f));
    p = vfma(p, r, vset(0.5f));
    return vfma(p, r * r, r);
}

// x = n ln(2) + r, with ln(2) in two parts so that n times the first is exact.
static inline vf reduce(vf x, vf* n) {
    *n = vround(x * vset(1.44269504f));
    vf r = vfma(*n, vset(-0.693359375f), x);
    return vfma(*n, vset(2.12194440e-4f), r);
}

// e^x; 0 from -104 downward, infinity from 89 upward, NaN for NaN.
static inline vf vexp(vf x) {
    vf n, r = reduce(vmin(vset(90.0f), vmax(vset(-105.0f), x)), &n);
    return vpow2(n, small_expm1(r) + vset(1.0f));
}

// tanh(x) = u / (u + 2) with u = e^2x - 1, which is exact near 0 too. The slope 1 - tanh(x)^2 is
// 4 e^2x / (u + 2)^2, which is exact far from 0 too, where the difference would be all rounding.
static inline vf vtanh(vf x, vf* slope) {
    vf n, r = reduce(vmin(vset(40.0f), vmax(vset(-40.0f), x + x)), &n);
    vf power = vpow2(n, vset(1.0f)), small = small_expm1(r);
    vf u = vfma(power, small, power - vset(1.0f)), inverse = vinverse(u + vset(2.0f));
    *slope = vset(4.0f) * vfma(power, small, power) * inverse * inverse;
    return u * inverse;
}

static inline vf vtanh(vf x) {
    vf slope;
    return vtanh(x, &slope);
}
