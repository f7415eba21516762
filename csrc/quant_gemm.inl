// Products of many rows with a matrix in few bits, a strip of outputs at a time. Included by quant.inl.
//
// The weights of a strip lie as one byte each in the second-level cache while all rows pass by, and a tile of rows
// in the first one while it meets the strip's blocks.

constexpr int64_t GEMM_BLOCKS = 2;              // blocks of outputs of a strip: one unit of the next product
#if defined(GS_TILE_REGISTERS)
constexpr int64_t GEMM_ROWS = 32;               // of the largest tiles: two registers' rows
#else
constexpr int64_t GEMM_ROWS = QUANT_ROWS;
#endif
constexpr int64_t GEMM_LEAST = 4 * QUANT_ROWS;  // from so many rows on, unpacking is worth it
constexpr int64_t GEMM_AHEAD = 262144;          // bytes of the next strip asked for at most
constexpr int64_t UNIT_VECTORS = 8;             // vectors of 64 bytes that hold a unit of a block, one byte per weight

// Sizes of a matrix.
struct GemmSizes {
    int64_t n_units, n_groups, n_blocks, n_strips;
    explicit GemmSizes(const gs_quant_call& call)
        : n_units((call.d_in + GS_QUANT_UNIT - 1) / GS_QUANT_UNIT),
          n_groups((n_units + call.group_units - 1) / call.group_units),
          n_blocks((call.d_out + GS_QUANT_BLOCK - 1) / GS_QUANT_BLOCK),
          n_strips((n_blocks + GEMM_BLOCKS - 1) / GEMM_BLOCKS) {}
};

// Some blocks of outputs as the tiles read them.
struct GemmStrip {
    const uint8_t* weights;  // [blocks, units, 8, 64]
    const uint8_t* zeros;    // [blocks, groups, 16], null where there are none
    float* factors;          // likewise, the scales
    int64_t first, n_blocks;
    int64_t n_units, n_groups, group_units;
};

// Rows of the largest tiles of so many.
static inline int64_t gemm_rows(int64_t n_rows) { return n_rows < GEMM_LEAST ? QUANT_ROWS : GEMM_ROWS; }

#include "quant_vectors.inl"
#include "quant_tiles.inl"

#if defined(GS_TILE_REGISTERS)
typedef TileGemm<GS_TILE_REGISTERS> Gemm;
#else
typedef VectorGemm Gemm;
#endif

// Memory for a strip of that matrix.
struct GemmScratch {
    uint8_t* weights;
    float* factors;
    GemmScratch(Pieces& pieces, const gs_quant_call& call) {
        const GemmSizes sizes(call);
        weights = (uint8_t*)pieces.floats(Gemm::takes_packed(call) ? 0 : GEMM_BLOCKS * sizes.n_units * UNIT_VECTORS * 16);
        factors = pieces.floats(GEMM_BLOCKS * sizes.n_groups * GS_QUANT_BLOCK);
    }
};

static GemmStrip gemm_strip(const gs_quant_call& call, int64_t index, const GemmScratch& at) {
    const GemmSizes sizes(call);
    const int64_t first = index * GEMM_BLOCKS, left = sizes.n_blocks - first;
    const int64_t n_blocks = left < GEMM_BLOCKS ? left : GEMM_BLOCKS;
    const int64_t scale = first * sizes.n_groups * GS_QUANT_BLOCK;
    const uint8_t* packed = call.values + first * sizes.n_units * call.bits * 64;
    for (int64_t i = 0; i < n_blocks * sizes.n_groups * GS_QUANT_BLOCK; i += W)
        vstore(at.factors + i, load_scales(call.scales, scale + i, call.scale_dtype));
    GemmStrip strip = {packed, call.zeros ? call.zeros + scale : nullptr, at.factors, first, n_blocks, sizes.n_units,
                       sizes.n_groups, call.group_units};
    if (!Gemm::takes_packed(call)) {
        Gemm::unpack(call, strip, packed, at.weights);
        strip.weights = at.weights;
    }
    return strip;
}

// Asks for the packed weights of a strip bit by bit, while another one is computed.
struct GemmAhead {
    const uint8_t* at;
    int64_t left, share;
    GemmAhead(const gs_quant_call& call, int64_t strip, int64_t n_tiles) : at(call.values), left(0), share(0) {
        const GemmSizes sizes(call);
        if (strip >= sizes.n_strips) return;
        const int64_t block_bytes = sizes.n_units * call.bits * 64, last = sizes.n_blocks - strip * GEMM_BLOCKS;
        at += strip * GEMM_BLOCKS * block_bytes;
        left = block_bytes * (last < GEMM_BLOCKS ? last : GEMM_BLOCKS);
        if (left > GEMM_AHEAD) left = GEMM_AHEAD;
        share = (left / n_tiles + 64) / 64 * 64;
    }
    void step() {
        for (int64_t i = 0; i < share && left > 0; i += 64, at += 64, left -= 64) __builtin_prefetch(at, 0, 2);
    }
};

// Write the sums of a tile to y.
template <class T>
static void gemm_store(const gs_quant_call& call, const GemmStrip& strip, int64_t first, int64_t size, const float* sums) {
    T* y = (T*)call.y + first * call.d_out;
    for (int64_t r = 0; r < size; r++)
        for (int64_t block = 0; block < strip.n_blocks; block++) {
            const float* from = sums + (block * GEMM_ROWS + r) * GS_QUANT_BLOCK;
            const int64_t output = (strip.first + block) * GS_QUANT_BLOCK;
            for (int64_t i = 0; i < GS_QUANT_BLOCK && output + i < call.d_out; i += W) {
                int64_t left = call.d_out - output - i;
                store(y + r * call.d_out + output + i, vload(from + i), left < W ? left : W);
            }
        }
}

// y for rows that have been rounded.
template <int BITS, class T>
static void gemm(const gs_quant_call& call, const QuantRows& rows) {
    const int64_t n_strips = GemmSizes(call).n_strips, n_tiles = (rows.n_rows + GEMM_ROWS - 1) / GEMM_ROWS;
    take_turns(n_strips, [&](int64_t index, int32_t) {
        static thread_local Scratch scratch;
        Pieces counted = {nullptr, 0};
        GemmScratch(counted, call);
        Pieces pieces = {scratch.at_least(counted.used), 0};
        const GemmStrip strip = gemm_strip(call, index, GemmScratch(pieces, call));
        GemmAhead ahead(call, index + gs_max_threads(), n_tiles);
        alignas(64) float sums[GEMM_BLOCKS * GEMM_ROWS * GS_QUANT_BLOCK];
        Gemm products;
        for (int64_t first = 0, size; first < rows.n_rows; first += size) {
            size = tile_rows(first, rows.n_rows, rows.most);
            ahead.step();
            products.template multiply<BITS>(strip, rows, first, size, sums);
            gemm_store<T>(call, strip, first, size, sums);
        }
    });
}
