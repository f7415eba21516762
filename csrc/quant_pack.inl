// From rows of values to the packed form of quant.h. Included by quant.inl.

// Value of input i of a row, as it is stored packed; inputs beyond the row are 0.
static inline uint8_t value_at(const uint8_t* row, int64_t i, int64_t d_in, int32_t bits) {
    if (bits == 8) return i < d_in ? (uint8_t)(row[i] ^ 128) : 128;
    return i < d_in ? (row[i / 2] >> (i % 2 * 4)) & 15 : 8;
}

// Four packed bytes of one row: those of vector v of a unit.
static inline void pack_four(const uint8_t* row, int64_t i, int64_t d_in, int32_t bits, uint8_t* out) {
    if (bits == 8) {
        for (int64_t c = 0; c < 4; c++) out[c] = value_at(row, i + c, d_in, bits);
    } else {
        for (int64_t c = 0; c < 4; c++)
            out[c] = (uint8_t)(value_at(row, i + c, d_in, bits) | value_at(row, i + c + 4, d_in, bits) << 4);
    }
}

// The low half-bytes of a word's bytes, from four half-bytes that lie together.
static inline uint32_t spread(uint32_t four) {
    uint32_t x = (four | four << 8) & 0x00ff00ffu;
    return (x | x << 4) & 0x0f0f0f0fu;
}

// The same as pack_four for four bytes that lie within a row.
static inline uint32_t pack_word(const uint8_t* bytes, int32_t bits) {
    uint32_t x;
    memcpy(&x, bytes, 4);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    x = __builtin_bswap32(x);
#endif
    x = bits == 8 ? x ^ 0x80808080u : spread(x & 0xffffu) | spread(x >> 16) << 4;
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    x = __builtin_bswap32(x);
#endif
    return x;
}

#if defined(__AVX512BW__) || defined(__AVX2__)
#define GS_PACKS_VECTORS
#if defined(__AVX512BW__)
// Word j of each of W rows into vector j.
static inline void turn_words(vi* x) {
    vi t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    // Then quarter k of x[4 i + j] holds word 4 k + j of rows 4 i to 4 i + 3.
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            x[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            x[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        vi a = _mm512_shuffle_i32x4(x[j], x[4 + j], 0x88), b = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0x88);
        vi c = _mm512_shuffle_i32x4(x[j], x[4 + j], 0xdd), d = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0xdd);
        x[j] = _mm512_shuffle_i32x4(a, b, 0x88);
        x[4 + j] = _mm512_shuffle_i32x4(c, d, 0x88);
        x[8 + j] = _mm512_shuffle_i32x4(a, b, 0xdd);
        x[12 + j] = _mm512_shuffle_i32x4(c, d, 0xdd);
    }
}
static inline vi flip_signs(vi x) { return _mm512_xor_si512(x, iset((int32_t)0x80808080)); }
// Half-bytes 0 to 3 of each word become the low ones of its bytes, 4 to 7 the high ones.
static inline vi interleave_halves(vi x) {
    const vi order = _mm512_set4_epi32(0x0f0d0e0c, 0x0b090a08, 0x07050604, 0x03010200);
    vi bytes = _mm512_shuffle_epi8(x, order);
    vi inner = _mm512_and_si512(_mm512_xor_si512(bytes, _mm512_srli_epi32(bytes, 4)), iset(0x00f000f0));
    return _mm512_xor_si512(bytes, _mm512_xor_si512(inner, _mm512_slli_epi32(inner, 4)));
}
#else
static inline void turn_words(vi* x) {
    vi t[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(x[i], x[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(x[i], x[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            x[i + 2 * j] = _mm256_unpacklo_epi64(t[i + j], t[i + j + 2]);
            x[i + 2 * j + 1] = _mm256_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        vi low = _mm256_permute2x128_si256(x[j], x[4 + j], 0x20);
        x[4 + j] = _mm256_permute2x128_si256(x[j], x[4 + j], 0x31);
        x[j] = low;
    }
}
static inline vi flip_signs(vi x) { return _mm256_xor_si256(x, iset((int32_t)0x80808080)); }
static inline vi interleave_halves(vi x) {
    const vi order = _mm256_broadcastsi128_si256(_mm_set_epi32(0x0f0d0e0c, 0x0b090a08, 0x07050604, 0x03010200));
    vi bytes = _mm256_shuffle_epi8(x, order);
    vi inner = _mm256_and_si256(_mm256_xor_si256(bytes, _mm256_srli_epi32(bytes, 4)), iset(0x00f000f0));
    return _mm256_xor_si256(bytes, _mm256_xor_si256(inner, _mm256_slli_epi32(inner, 4)));
}
#endif

// Vectors v to v + W - 1 of a whole block, from words that lie within its rows.
static inline void pack_vectors(const uint8_t* rows, int64_t row_bytes, int64_t v, int32_t bits, uint8_t* to) {
    for (int64_t part = 0; part < GS_QUANT_BLOCK; part += W) {
        vi words[W];
#pragma GCC unroll 16
        for (int64_t lane = 0; lane < W; lane++) words[lane] = iload(rows + (part + lane) * row_bytes + v * 4);
        turn_words(words);
#pragma GCC unroll 16
        for (int64_t i = 0; i < W; i++)
            istore(to + (v + i) * 64 + part * 4, bits == 8 ? flip_signs(words[i]) : interleave_halves(words[i]));
    }
}
#endif

static void pack_quantized(const uint8_t* values, uint8_t* packed, int64_t d_in, int64_t d_out, int32_t bits) {
    const int64_t n_units = (d_in + GS_QUANT_UNIT - 1) / GS_QUANT_UNIT, row_bytes = bits == 8 ? d_in : d_in / 2;
    const int64_t n_vectors = n_units * bits, step = GS_QUANT_UNIT / bits, n_whole = d_in / step;
    share_out((d_out + GS_QUANT_BLOCK - 1) / GS_QUANT_BLOCK, 4, [&](int64_t begin, int64_t end, int32_t) {
        for (int64_t block = begin; block < end; block++) {
            const int64_t first = block * GS_QUANT_BLOCK, left = d_out - first;
            const int64_t n_lanes = left < GS_QUANT_BLOCK ? left : GS_QUANT_BLOCK;
            const uint8_t* rows = values + first * row_bytes;
            uint8_t* to = packed + block * n_vectors * 64;
            int64_t v = 0;
#if defined(GS_PACKS_VECTORS)
            if (n_lanes == GS_QUANT_BLOCK)
                for (; v + W <= n_whole; v += W) pack_vectors(rows, row_bytes, v, bits, to);
#endif
            for (; v < n_vectors; v++)
                for (int64_t lane = 0; lane < GS_QUANT_BLOCK; lane++) {
                    uint8_t* out = to + v * 64 + lane * 4;
                    const uint8_t* row = rows + lane * row_bytes;
                    if (lane < n_lanes && v < n_whole) {
                        uint32_t word = pack_word(row + v * 4, bits);
                        memcpy(out, &word, 4);
                    } else {
                        pack_four(row, v * step, lane < n_lanes ? d_in : 0, bits, out);
                    }
                }
        }
    });
}

// What each group has, scales or zeros: [d_out, n_groups] into [blocks, n_groups, 16], 0 beyond d_out.
template <class T>
static void pack_groups(const T* from, T* to, int64_t n_groups, int64_t d_out) {
    share_out((d_out + GS_QUANT_BLOCK - 1) / GS_QUANT_BLOCK, 16, [&](int64_t begin, int64_t end, int32_t) {
        for (int64_t block = begin; block < end; block++)
            for (int64_t group = 0; group < n_groups; group++)
                for (int64_t lane = 0, row = block * GS_QUANT_BLOCK; lane < GS_QUANT_BLOCK; lane++, row++)
                    to[(block * n_groups + group) * GS_QUANT_BLOCK + lane] = row < d_out ? from[row * n_groups + group] : 0;
    });
}

static void pack_groups(const void* from, void* to, int64_t n_groups, int64_t d_out, int32_t item_bytes) {
    if (item_bytes == 1) pack_groups((const uint8_t*)from, (uint8_t*)to, n_groups, d_out);
    else if (item_bytes == 2) pack_groups((const uint16_t*)from, (uint16_t*)to, n_groups, d_out);
    else pack_groups((const uint32_t*)from, (uint32_t*)to, n_groups, d_out);
}

// The packed words of 32 values as Q4_0 has them: the first 16 in the low halves of its bytes, the others in the high.
static inline void turn_halves(const uint8_t* values, uint8_t* to) {
    const uint32_t low = 0x0f0f0f0fu;
    uint32_t x[4], words[4];
    memcpy(x, values, 16);
    words[0] = (x[0] & low) | (x[1] & low) << 4;
    words[1] = (x[2] & low) | (x[3] & low) << 4;
    words[2] = (x[0] >> 4 & low) | (x[1] & ~low);
    words[3] = (x[2] >> 4 & low) | (x[3] & ~low);
    for (int v = 0; v < 4; v++) memcpy(to + v * 64, &words[v], 4);
}

static void pack_blocks(const uint8_t* rows, uint8_t* packed, void* scales, int64_t d_in, int64_t d_out, int32_t bits) {
    const int64_t n_units = d_in / GS_QUANT_UNIT, unit_bytes = 2 + 4 * bits, row_bytes = n_units * unit_bytes;
    share_out((d_out + GS_QUANT_BLOCK - 1) / GS_QUANT_BLOCK, 4, [&](int64_t begin, int64_t end, int32_t) {
        for (int64_t block = begin; block < end; block++)
            for (int64_t unit = 0; unit < n_units; unit++) {
                const int64_t at = block * n_units + unit;
                uint8_t* to = packed + at * 64 * bits;
                uint16_t* steps = (uint16_t*)scales + at * GS_QUANT_BLOCK;
                for (int64_t lane = 0, row = block * GS_QUANT_BLOCK; lane < GS_QUANT_BLOCK; lane++, row++, to += 4) {
                    const uint8_t* from = rows + row * row_bytes + unit * unit_bytes;
                    if (row >= d_out) {
                        steps[lane] = 0;
                        for (int v = 0; v < bits; v++) memset(to + v * 64, bits == 4 ? 0x88 : 0x80, 4);
                        continue;
                    }
                    memcpy(&steps[lane], from, 2);
                    if (bits == 4) turn_halves(from + 2, to);
                    else
                        for (int v = 0; v < 8; v++) {
                            uint32_t word = pack_word(from + 2 + v * 4, 8);
                            memcpy(to + v * 64, &word, 4);
                        }
                }
            }
    });
}
