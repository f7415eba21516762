// Products of a strip with tiles of rows by tile registers. Included by quant_gemm.inl. UNMEASURED, as those are;
// test_quant.cpp compares it with emulated registers to the vectors' results in every bit.
//
// A unit of a block at a byte a weight is a right operand as it lies, 8 x 64 bytes; a unit of 16 rows of activations is
// a left one. Their exact integers go to memory, where vectors fetch them and sum them in quant_tile's order, while the
// registers are busy with the next units. The vectors' share takes longer than the registers': per 16 rows, 16 outputs
// and unit some 32 to 48 operations against 16 cycles. So weights become signed bytes, less their zeros, wherever those
// hold the difference: that leaves nothing to correct.

constexpr int64_t TILE_ROWS = 16;    // of a register
constexpr int64_t TILE_UNITS = 4;    // whose integers lie in memory together
constexpr int64_t TILE_HALF = 8;     // rows that vectors sum at once
constexpr int TILE_VECTORS = 2;      // of outputs that they sum at once

// Loops over the sums of a patch, which stay in registers only if they are unrolled.
#define GS_TILE_EACH                                              \
    _Pragma("GCC unroll 8") for (int r = 0; r < R; r++)           \
        _Pragma("GCC unroll 2") for (int k = 0; k < TILE_VECTORS; k++)

template <class Registers>
struct TileGemm {
    // Integers of some units: [units, blocks, rows, outputs].
    typedef int32_t Products[TILE_UNITS][GEMM_BLOCKS][TILE_ROWS][GS_QUANT_BLOCK];

    // A tile of `size` rows and where its sums go; all as in QuantRows and VectorGemm.
    struct Tile {
        const GemmStrip& strip;
        const int8_t* values;
        const float* scales;
        const int32_t* corrections;
        int64_t size;
        float* out;

        int64_t n_rows() const { return size < TILE_ROWS ? size : TILE_ROWS; }
        // The last strip's second block, where there is none, is the first one again.
        int64_t source(int64_t block) const { return block < strip.n_blocks ? block : 0; }
        const uint8_t* weights(int64_t block, int64_t unit) const {
            return strip.weights + (source(block) * strip.n_units + unit) * UNIT_VECTORS * 64;
        }
    };

    // TILE_UNITS units of n_rows rows of a tile, and the place in its groups.
    struct Step {
        int64_t unit, row;
        int64_t group, passed;  // of `unit`: its group and the units of that before it

        void advance(const Tile& tile) {
            row += TILE_ROWS;
            if (row < tile.size) return;
            row = 0, unit += TILE_UNITS, passed += TILE_UNITS;
            group += passed / tile.strip.group_units, passed %= tile.strip.group_units;
        }
    };

    alignas(64) Products products[2];                                   // of this step and the next
    alignas(64) float inner[GEMM_BLOCKS * GEMM_ROWS * GS_QUANT_BLOCK];  // sums of groups that are not complete
    int64_t shaped_for = 0;                                             // rows of the registers

    ~TileGemm() {
        if (shaped_for) Registers::end();
    }

    // Weights of 8 bits with zeros of their own are the only ones that would not fit signed bytes.
    static bool takes_packed(const gs_quant_call& call) { return call.bits == 8 && call.zeros; }

    static void unpack(const gs_quant_call& call, GemmStrip& strip, const uint8_t* packed, uint8_t* to) {
        for (int64_t block = 0; block < strip.n_blocks; block++)
            for (int64_t unit = 0; unit < strip.n_units; unit++, packed += call.bits * 64, to += UNIT_VECTORS * 64) {
                int64_t at = (block * strip.n_groups + unit / strip.group_units) * GS_QUANT_BLOCK;
                unpack_unit(packed, strip.zeros ? strip.zeros + at : nullptr, call.bits, to);
            }
        strip.zeros = nullptr;
    }

    // Signed bytes; the halves of vector v become vectors 2 v and 2 v + 1.
    static void unpack_unit(const uint8_t* packed, const uint8_t* zeros, int32_t bits, uint8_t* to) {
        for (int64_t part = 0; part < PARTS; part++, packed += W * 4, to += W * 4) {
            const vi zero = zeros ? irepeat(zeros + part * W) : iset(0x08080808);
            for (int64_t v = 0; v < bits; v++) {
                const vi w = iload(packed + v * 64);
                if (bits == 4) {
                    istore(to + v * 128, isub_bytes(low_halves(w), zero));
                    istore(to + v * 128 + 64, isub_bytes(high_halves(w), zero));
                } else {
                    istore(to + v * 64, w ^ iset((int32_t)0x80808080u));
                }
            }
        }
    }

    // VectorGemm's function, and its results in every bit.
    template <int>
    void multiply(const GemmStrip& strip, const QuantRows& rows, int64_t first, int64_t size, float* out) {
        const int64_t at = first * rows.n_units;
        const Tile tile = {strip, rows.values + at * GS_QUANT_UNIT, rows.scales + at, rows.corrections + at, size, out};
        if (shaped_for != tile.n_rows()) {
            shaped_for = tile.n_rows();
            Registers::begin(tile_shapes(shaped_for, UNIT_VECTORS));
        }
        if (strip.zeros) strip.group_units == 1 ? run<true, true>(tile) : run<true, false>(tile);
        else strip.group_units == 1 ? run<false, true>(tile) : run<false, false>(tile);
    }

    // The registers are one step ahead of the vectors; both take halves in turn, so that neither waits for long.
    template <bool HAS_ZEROS, bool IS_SINGLE>
    void run(const Tile& tile) {
        const int64_t n_units = tile.strip.n_units;
        Step next = {}, now = {};
        for (int64_t n = 0;; n++) {
            for (int64_t half = 0; half < 2; half++) {
                if (next.unit < n_units) fill<HAS_ZEROS>(tile, next, half * 2, products[n % 2]);
                if (n) add_half<HAS_ZEROS, IS_SINGLE>(tile, now, half * TILE_HALF, products[(n + 1) % 2]);
            }
            if (next.unit >= n_units) return;
            now = next;
            next.advance(tile);
        }
    }

    // Integers of units `first` and the next of a step.
    template <bool HAS_ZEROS>
    static void fill(const Tile& tile, const Step& step, int64_t first, Products& to) {
        const int64_t n = tile.strip.n_units - step.unit - first;
        if (n <= 0) return;
        multiply_unit<HAS_ZEROS, 0>(tile, step.unit + first, step.row);
        if (n > 1) multiply_unit<HAS_ZEROS, 1>(tile, step.unit + first + 1, step.row);
        store_unit<0>(to[first]);
        if (n > 1) store_unit<1>(to[first + 1]);
    }

    template <bool HAS_ZEROS, int I>
    static void multiply_unit(const Tile& tile, int64_t unit, int64_t row) {
        Registers::template load<4 + I>(tile.values + (unit * tile.size + row) * GS_QUANT_UNIT, GS_QUANT_UNIT);
        Registers::template zero<2 * I>();
        Registers::template zero<2 * I + 1>();
        Registers::template load<6>(tile.weights(0, unit), 64);
        multiply_registers<HAS_ZEROS, 2 * I, 4 + I, 6>();
        Registers::template load<7>(tile.weights(1, unit), 64);
        multiply_registers<HAS_ZEROS, 2 * I + 1, 4 + I, 7>();
    }

    template <bool HAS_ZEROS, int SUM, int LEFT, int RIGHT>
    static void multiply_registers() {
        if (HAS_ZEROS) Registers::template multiply_unsigned<SUM, LEFT, RIGHT>();
        else Registers::template multiply_bytes<SUM, LEFT, RIGHT>();
    }

    template <int I>
    static void store_unit(int32_t (&to)[GEMM_BLOCKS][TILE_ROWS][GS_QUANT_BLOCK]) {
        Registers::template store<2 * I>(to[0], 64);
        Registers::template store<2 * I + 1>(to[1], 64);
    }

    // Add the integers of a step, of up to TILE_HALF rows from `first` on, to the sums.
    template <bool HAS_ZEROS, bool IS_SINGLE>
    void add_half(const Tile& tile, const Step& step, int64_t first, const Products& from) {
        const int64_t n = tile.n_rows() - first;
        for (int64_t vector = 0; vector < GEMM_BLOCKS * PARTS; vector += TILE_VECTORS) {
            if (n >= TILE_HALF) Patch<TILE_HALF, HAS_ZEROS, IS_SINGLE>(*this, tile, step, first, vector, from).add();
            else
                for (int64_t r = 0; r < n; r++)
                    Patch<1, HAS_ZEROS, IS_SINGLE>(*this, tile, step, first + r, vector, from).add();
        }
    }

    // R rows by TILE_VECTORS vectors of outputs of a step. The sums in registers are whole ones where each unit is a
    // group (IS_SINGLE), otherwise those of a group.
    template <int R, bool HAS_ZEROS, bool IS_SINGLE>
    struct Patch {
        typedef vf Sums[TILE_VECTORS][R];
        const int64_t size, left, group_units;  // rows of the tile; units from the step's first on; units of a group
        int64_t group, passed;
        const float* scales;
        const int32_t* corrections;
        const int32_t* integers[TILE_VECTORS];
        const float* factors[TILE_VECTORS];
        const uint8_t* zeros[TILE_VECTORS];
        float *total[TILE_VECTORS], *held[TILE_VECTORS];

        Patch(TileGemm& gemm, const Tile& tile, const Step& step, int64_t first, int64_t vector, const Products& from)
            : size(tile.size), left(tile.strip.n_units - step.unit), group_units(tile.strip.group_units),
              group(step.group), passed(step.passed) {
            const GemmStrip& strip = tile.strip;
            const int64_t row = step.unit * size + step.row + first;
            scales = tile.scales + row, corrections = tile.corrections + row;
            for (int64_t k = 0; k < TILE_VECTORS; k++) {
                const int64_t block = (vector + k) / PARTS, lane = (vector + k) % PARTS * W;
                const int64_t factor = (tile.source(block) * strip.n_groups + group) * GS_QUANT_BLOCK + lane;
                const int64_t sum = (block * GEMM_ROWS + step.row + first) * GS_QUANT_BLOCK + lane;
                integers[k] = &from[0][block][first][lane];
                factors[k] = strip.factors + factor, zeros[k] = HAS_ZEROS ? strip.zeros + factor : nullptr;
                total[k] = tile.out + sum, held[k] = IS_SINGLE ? total[k] : gemm.inner + sum;
            }
        }

        void add() {
            Sums sums;
            const bool is_new = (IS_SINGLE ? group : passed) == 0;
            GS_TILE_EACH sums[k][r] = is_new ? vzero() : vload(held[k] + r * GS_QUANT_BLOCK);
            for (int64_t u = 0; u < TILE_UNITS && u < left; u++) {
                add_unit(sums);
                if (IS_SINGLE || ++passed == group_units || u + 1 == left) end_group(sums);
            }
            if (!IS_SINGLE && !passed) return;
            GS_TILE_EACH vstore(held[k] + r * GS_QUANT_BLOCK, sums[k][r]);
        }

        __attribute__((always_inline)) void add_unit(Sums& sums) {
            vf factor[TILE_VECTORS];
            for (int64_t k = 0; k < TILE_VECTORS; k++) factor[k] = vload(factors[k]);
            GS_TILE_EACH {
                vi whole;
                memcpy(&whole, integers[k] + r * GS_QUANT_BLOCK, sizeof(whole));
                if (HAS_ZEROS) whole = iadd(whole, iproduct(iwiden(zeros[k]), corrections[r]));
                vf inner = vfma(ifloat(whole), vset(scales[r]), IS_SINGLE ? vzero() : sums[k][r]);
                sums[k][r] = IS_SINGLE ? vfma(inner, factor[k], sums[k][r]) : inner;
            }
            scales += size, corrections += size;
            for (int64_t k = 0; k < TILE_VECTORS; k++) integers[k] += GEMM_BLOCKS * TILE_ROWS * GS_QUANT_BLOCK;
        }

        __attribute__((always_inline)) void end_group(Sums& sums) {
            if (!IS_SINGLE)
                GS_TILE_EACH {
                    float* to = total[k] + r * GS_QUANT_BLOCK;
                    vstore(to, vfma(sums[k][r], vload(factors[k]), group ? vload(to) : vzero()));
                    sums[k][r] = vzero();
                }
            passed = 0, group++;
            for (int64_t k = 0; k < TILE_VECTORS; k++) {
                factors[k] += GS_QUANT_BLOCK;
                if (HAS_ZEROS) zeros[k] += GS_QUANT_BLOCK;
            }
        }
    };
};
#undef GS_TILE_EACH
