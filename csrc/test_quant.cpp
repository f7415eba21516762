// Products of matrices in 4 and 8 bits against double arithmetic, over buffers that touch a forbidden page.
#include <initializer_list>

#include "test_emulated.h"
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

// A packed matrix of random numbers with float32 scales.
struct Matrix {
    Shape shape;
    Guarded<uint8_t> packed, zeros;
    Numbers scales;
    explicit Matrix(const Shape& s)
        : shape(s), packed(s.blocks() * s.units() * 64 * s.bits), zeros(s.has_zeros ? n_scales() : 0),
          scales(n_scales(), GS_FLOAT32, 0.01f, (uint32_t)s.d_out) {
        for (size_t i = 0; i < packed.size(); i++) packed[i] = (uint8_t)random_byte();
        for (size_t i = 0; i < zeros.size(); i++) zeros[i] = (uint8_t)(random_byte() & (s.bits == 4 ? 15 : 255));
    }
    int64_t n_scales() const { return shape.blocks() * shape.groups() * GS_QUANT_BLOCK; }
    gs_quant_call call(void* x, void* y) {
        return {x, y, packed.data(), scales.data(), shape.has_zeros ? zeros.data() : nullptr, nullptr, shape.n_rows,
                shape.d_in, shape.d_out, shape.group_units, shape.bits, shape.dtype, GS_FLOAT32};
    }
};

// The products by emulated tiles with the selected set's vectors. Real tiles, too, must give what these give.
const Emulated* by_tiles() {
    if (!strcmp(gs_isa(), "portable")) return emulated_portable;
    return strcmp(gs_isa(), "avx512_bf16") && strcmp(gs_isa(), "amx") ? nullptr : emulated_avx512_bf16;
}

void expect_same(const char* what, Numbers& found, Numbers& wanted, int64_t begin, int64_t n, int32_t dtype) {
    const size_t size = dtype ? 2 : 4;
    const char *a = (const char*)found.data() + begin * size, *b = (const char*)wanted.data();
    if (!memcmp(a, b, n * size)) return;
    int64_t i = 0;
    while (!memcmp(a + i * size, b + i * size, size)) i++;
    fprintf(stderr, "%s on %s: %.9g instead of %.9g at %d\n", what, gs_isa(), found[begin + i], wanted[i], (int)i);
    exit(1);
}

// Tiles against vectors in every bit, and the last row by itself.
void check_tiles(const Shape& s) {
    Matrix matrix(s);
    Numbers x(s.n_rows * s.d_in, s.dtype, 2.0f, 4), y(s.n_rows * s.d_out, s.dtype), wanted(s.n_rows * s.d_out, s.dtype);
    Numbers last(s.d_out, s.dtype);
    for (int64_t i = 0; i < s.d_in && i < GS_QUANT_UNIT; i++) x.set(i, 0.0f);
    if (s.n_rows > 5) x.set(5 * s.d_in, INFINITY);
    Guarded<uint8_t> scratch(s.n_rows * s.units() * 40);
    gs_quant_call call = matrix.call(x.data(), wanted.data());
    call.scratch = scratch.data();
    gs_quantized_linear(&call);
    call.y = y.data();
    by_tiles()->quantized_linear(&call);
    expect_same("quantized_linear by tiles", y, wanted, 0, s.n_rows * s.d_out, s.dtype);
    call.n_rows = 1, call.x = (char*)call.x + (s.n_rows - 1) * s.d_in * (s.dtype ? 2 : 4), call.y = last.data();
    gs_quantized_linear(&call);
    expect_same("a row by tiles", y, last, (s.n_rows - 1) * s.d_out, s.d_out, s.dtype);
}

void test_quantized_linear_by_tiles() {
    if (!by_tiles()) return;
    for (int32_t bits : {4, 8})
        for (bool has_zeros : {false, true}) {
            for (int64_t group_units : {1, 2, 3, 4, 5, 9})
                for (int32_t dtype : {GS_FLOAT32, GS_BFLOAT16})
                    check_tiles({49, 258, 35, group_units, bits, dtype, GS_FLOAT32, has_zeros});
            for (int64_t n_rows : {1, 7, 15, 16, 17, 20, 31, 32, 33, 40, 47, 48, 56, 63, 64, 65, 70}) {
                int64_t d_in = 2 + 2 * (int64_t)(random_byte() % 100), d_out = 1 + random_byte() % 70;
                check_tiles({n_rows, d_in, d_out, 1 + random_byte() % 3, bits, GS_FLOAT32, GS_FLOAT32, has_zeros});
            }
        }
}

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
    expect_same("quantized_feed_forward", y, wanted, 0, n_rows * 40, dtype);
    if (!by_tiles()) return;
    Numbers tiled(n_rows * 40, dtype);
    const gs_quant_call by_tile[] = {calls[0], calls[1], down.call(nullptr, tiled.data())};
    by_tiles()->quantized_feed_forward(by_tile);
    expect_same("quantized_feed_forward by tiles", tiled, y, 0, n_rows * 40, dtype);
}

void test_quantized_feed_forward() {
    for (int64_t n_rows : {3, 45, 80})
        for (int64_t d_ff : {2, 34, 96})
            for (int32_t bits : {4, 8})
                for (int32_t dtype : {GS_FLOAT32, GS_BFLOAT16}) check_feed_forward(n_rows, d_ff, bits, dtype);
}

// Rows packed ahead, in two jobs, against the same at once; a job that is somebody's is left to him.
void check_early(int64_t width, int64_t n_rows, int32_t bits) {
    const int64_t row_bytes = (width * bits + 7) / 8, half = n_rows / 2 / 16 * 16;
    const int64_t packed_width = bits > 8 ? width : (width + 31) / 32 * 32, n = (n_rows + 15) / 16 * 16 * packed_width * bits / 8;
    Guarded<uint8_t> plain(n_rows * row_bytes), wanted(n), found(n), untouched(n);
    for (size_t i = 0; i < plain.size(); i++) plain[i] = (uint8_t)random_byte();
    if (bits > 8) gs_pack_groups(plain.data(), wanted.data(), width, n_rows, bits / 8);
    else gs_pack_quantized(plain.data(), wanted.data(), width, n_rows, bits);
    memset(untouched.data(), 0x5a, n);
    gs_early_job jobs[] = {{plain.data(), untouched.data(), width, n_rows, bits, 1},
                           {plain.data(), found.data(), width, half, bits, 0},
                           {plain.data() + half * row_bytes, found.data() + half * packed_width * bits / 8, width,
                            n_rows - half, bits, 0}};
    int32_t is_over = 1;
    gs_pack_early(jobs, 3, &is_over);
    if (jobs[1].state != 0) expect("pack_early when it is over", jobs[1].state, 0, 0);
    is_over = 0;
    gs_pack_early(jobs, 3, &is_over);
    for (int64_t i = 0; i < n; i++) {
        if (found[i] != wanted[i]) expect("pack_early", found[i], wanted[i], 0);
        if (untouched[i] != 0x5a) expect("pack_early of somebody's", untouched[i], 0x5a, 0);
    }
    if (jobs[0].state != 1 || jobs[1].state != 2 || jobs[2].state != 2) expect("states", 0, 1, 0);
    if (gs_do_early(&jobs[0]) != 1 || gs_do_early(&jobs[1]) != 2) expect("do_early again", 0, 1, 0);
}

// Blocks of GGUF against their values and scales, packed apart.
void check_blocks(int64_t n_units, int64_t n_rows, int32_t bits) {
    const int64_t unit = 2 + 4 * bits, width = n_units * 32, n_blocks = (n_rows + 15) / 16;
    Guarded<uint8_t> rows(n_rows * n_units * unit), plain(n_rows * width * bits / 8);
    Guarded<uint16_t> steps(n_rows * n_units), wanted_steps(n_blocks * n_units * 16), found_steps(n_blocks * n_units * 16);
    Guarded<uint8_t> wanted(n_blocks * n_units * 64 * bits), found(n_blocks * n_units * 64 * bits);
    for (size_t i = 0; i < rows.size(); i++) rows[i] = (uint8_t)random_byte();
    for (int64_t i = 0; i < n_rows * n_units; i++) {
        const uint8_t* from = rows.data() + i * unit;
        memcpy(&steps[i], from, 2);
        auto value = [&](int64_t k) { return k < 16 ? from[2 + k] & 15 : from[2 + k - 16] >> 4; };
        if (bits == 8) memcpy(plain.data() + i * 32, from + 2, 32);
        else
            for (int64_t k = 0; k < 16; k++) plain[i * 16 + k] = (uint8_t)(value(2 * k) | value(2 * k + 1) << 4);
    }
    gs_pack_quantized(plain.data(), wanted.data(), width, n_rows, bits);
    gs_pack_groups(steps.data(), wanted_steps.data(), n_units, n_rows, 2);
    gs_pack_blocks(rows.data(), found.data(), found_steps.data(), width, n_rows, bits);
    for (size_t i = 0; i < found.size(); i++)
        if (found[i] != wanted[i]) expect("pack_blocks", found[i], wanted[i], 0);
    for (size_t i = 0; i < found_steps.size(); i++)
        if (found_steps[i] != wanted_steps[i]) expect("pack_blocks' scales", found_steps[i], wanted_steps[i], 0);
}

void test_pack_blocks() {
    for (int32_t bits : {4, 8})
        for (int64_t n_units : {1, 3})
            for (int64_t n_rows : {1, 16, 35}) check_blocks(n_units, n_rows, bits);
}

void test_pack_early() {
    for (int32_t bits : {4, 8, 16, 32})
        for (int64_t width : {2, 40, 96})
            for (int64_t n_rows : {1, 35, 400}) check_early(width, n_rows, bits);
}

const Test TESTS[] = {{"pack_blocks", test_pack_blocks},
                      {"pack_early", test_pack_early},
                      {"quantized_linear", test_quantized_linear},
                      {"quantized_linear_by_emulated_tiles", test_quantized_linear_by_tiles},
                      {"quantized_feed_forward", test_quantized_feed_forward}};

}  // namespace
