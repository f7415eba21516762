// Products of matrices in 4 and 8 bits against double arithmetic, over buffers that touch a forbidden page.
#include <initializer_list>

#include "test_support.h"

namespace {

struct Shape {
    int64_t n_rows, d_in, d_out, group_units;
    int32_t bits, dtype, scale_dtype;
    bool has_zeros;
    int64_t units() const { return (d_in + GS_QUANT_UNIT - 1) / GS_QUANT_UNIT; }
    int64_t blocks() const { return (d_out + GS_QUANT_BLOCK - 1) / GS_QUANT_BLOCK; }
    int64_t groups() const { return (units() + group_units - 1) / group_units; }
};

uint32_t random_state = 1;
uint32_t random_byte() {
    random_state = random_state * 1664525u + 1013904223u;
    return random_state >> 24;
}

// Value of an input as it is stored packed: 0 to 15 or 255.
int stored_value(Guarded<uint8_t>& values, const Shape& s, int64_t output, int64_t i) {
    if (s.bits == 8) return values[output * s.d_in + i] ^ 128;
    return (values[output * (s.d_in / 2) + i / 2] >> (i % 2 * 4)) & 15;
}

double rounded(Numbers& x, const Shape& s, int64_t row, int64_t i) {
    int64_t begin = i / GS_QUANT_UNIT * GS_QUANT_UNIT, end = begin + GS_QUANT_UNIT;
    float most = 0;
    for (int64_t k = begin; k < end && k < s.d_in; k++) most = fmaxf(most, fabsf((float)x[row * s.d_in + k]));
    return nearbyintf((float)x[row * s.d_in + i] * (127.0f / most)) * (most / 127.0);
}

void check_product(const Shape& s) {
    Guarded<uint8_t> values(s.bits == 8 ? s.d_out * s.d_in : s.d_out * s.d_in / 2);
    for (size_t i = 0; i < values.size(); i++) values[i] = (uint8_t)random_byte();
    Guarded<uint8_t> packed(s.blocks() * s.units() * 64 * s.bits);
    gs_pack_quantized(values.data(), packed.data(), s.d_in, s.d_out, s.bits);
    int64_t n_scales = s.blocks() * s.groups() * GS_QUANT_BLOCK;
    Guarded<uint8_t> zeros(s.has_zeros ? n_scales : 0);
    for (size_t i = 0; i < zeros.size(); i++) zeros[i] = (uint8_t)(random_byte() & (s.bits == 4 ? 15 : 255));
    // float16 scales: 1, 2, 4 or 8 of 2^-10; the test of Python has the others.
    Numbers scales(n_scales, s.scale_dtype == GS_FLOAT16 ? GS_BFLOAT16 : s.scale_dtype, 0.01f, 3);
    Guarded<uint16_t> half(s.scale_dtype == GS_FLOAT16 ? n_scales : 0);
    for (size_t i = 0; i < half.size(); i++) {
        int exponent = (int)(random_byte() & 3);
        half[i] = (uint16_t)((5 + exponent) << 10);
        scales.set(i, ldexpf(1.0f, exponent - 10));
    }
    Numbers x(s.n_rows * s.d_in, s.dtype, 2.0f, 4), y(s.n_rows * s.d_out, s.dtype);
    Guarded<uint8_t> scratch(s.n_rows * s.units() * 40);
    gs_quant_call call = {x.data(), y.data(), packed.data(), half.size() ? (void*)half.data() : scales.data(),
                          s.has_zeros ? zeros.data() : nullptr, scratch.data(), s.n_rows, s.d_in, s.d_out,
                          s.group_units, s.bits, s.dtype, s.scale_dtype};
    gs_quantized_linear(&call);
    for (int64_t row = 0; row < s.n_rows; row++)
        for (int64_t output = 0; output < s.d_out; output++) {
            double wanted = 0;
            for (int64_t i = 0; i < s.d_in; i++) {
                int64_t group = i / GS_QUANT_UNIT / s.group_units, block = output / GS_QUANT_BLOCK;
                int64_t at = (block * s.groups() + group) * GS_QUANT_BLOCK + output % GS_QUANT_BLOCK;
                int zero = s.has_zeros ? zeros[at] : s.bits == 4 ? 8 : 128;
                wanted += rounded(x, s, row, i) * (stored_value(values, s, output, i) - zero) * scales[at];
            }
            expect("quantized_linear", y[row * s.d_out + output], wanted, s.dtype, s.bits == 8 ? 30.0 : 3.0);
        }
}

void test_quantized_linear() {
    for (int32_t bits : {4, 8})
        for (bool has_zeros : {false, true})
            for (int64_t n_rows : {1, 3, 23, 45})
                for (int64_t d_out : {1, 16, 35}) {
                    check_product({n_rows, 34, d_out, 2, bits, GS_FLOAT32, GS_FLOAT32, has_zeros});
                    check_product({n_rows, 96, d_out, 1, bits, GS_BFLOAT16, GS_BFLOAT16, has_zeros});
                    check_product({n_rows, 128, d_out, 2, bits, GS_FLOAT32, GS_FLOAT16, has_zeros});
                }
    check_product({2, 2, 3, 1, 4, GS_FLOAT32, GS_FLOAT32, false});
    check_product({2, 1, 3, 1, 8, GS_BFLOAT16, GS_FLOAT32, true});
    check_product({1, 2048, 300, 1, 4, GS_FLOAT32, GS_FLOAT32, false});  // enough for several threads
}

// A packed matrix of random numbers with float32 scales, one a row.
struct Matrix {
    Shape shape;
    Guarded<uint8_t> packed;
    Numbers scales;
    explicit Matrix(const Shape& s)
        : shape(s), packed(s.blocks() * s.units() * 64 * s.bits),
          scales(s.blocks() * GS_QUANT_BLOCK, GS_FLOAT32, 0.01f, (uint32_t)s.d_out) {
        for (size_t i = 0; i < packed.size(); i++) packed[i] = (uint8_t)random_byte();
    }
    gs_quant_call call(void* x, void* y) {
        return {x, y, packed.data(), scales.data(), nullptr, nullptr, shape.n_rows, shape.d_in, shape.d_out,
                shape.units(), shape.bits, shape.dtype, GS_FLOAT32};
    }
};

// A gated layer in one call against its three products, in every bit.
void check_feed_forward(int64_t n_rows, int64_t d_ff, int32_t bits, int32_t dtype) {
    Matrix gate({n_rows, 70, d_ff, 3, bits, dtype, GS_FLOAT32, false});
    Matrix up({n_rows, 70, d_ff, 3, bits, dtype, GS_FLOAT32, false});
    Matrix down({n_rows, d_ff, 40, (d_ff + 31) / 32, 12 - bits, dtype, GS_FLOAT32, false});
    Numbers x(n_rows * 70, dtype, 2.0f, 4), y(n_rows * 40, dtype), wanted(n_rows * 40, dtype);
    Numbers gated(n_rows * d_ff, dtype), left(n_rows * d_ff, dtype), right(n_rows * d_ff, dtype);
    const gs_quant_call calls[] = {gate.call(x.data(), nullptr), up.call(nullptr, nullptr), down.call(nullptr, y.data())};
    gs_quantized_feed_forward(calls);
    const gs_quant_call first[] = {gate.call(x.data(), left.data()), up.call(x.data(), right.data())};
    gs_quantized_linears(first, 2);
    gs_gated_gelu(left.data(), right.data(), gated.data(), n_rows, d_ff, d_ff, d_ff, dtype);
    const gs_quant_call last = down.call(gated.data(), wanted.data());
    gs_quantized_linear(&last);
    for (int64_t i = 0; i < n_rows * 40; i++)
        if (y[i] != wanted[i]) expect("quantized_feed_forward", y[i], INFINITY, dtype);
}

void test_quantized_feed_forward() {
    for (int64_t n_rows : {3, 45})
        for (int64_t d_ff : {2, 34, 96})
            for (int32_t bits : {4, 8})
                for (int32_t dtype : {GS_FLOAT32, GS_BFLOAT16}) check_feed_forward(n_rows, d_ff, bits, dtype);
}

const Test TESTS[] = {{"quantized_linear", test_quantized_linear},
                      {"quantized_feed_forward", test_quantized_feed_forward}};

}  // namespace
