// What a call of the decode step keeps in its scratch memory. Included by decode.inl.

// Of a layer: turns of q k v, attention, o, gate and up, down, and for all but attention who has done its part of deltas.
constexpr int64_t COUNTERS = 5 + 4;

// Largest widths of a network, and where its buffers lie.
struct Sizes {
    int64_t d_model, d_attention, d_key, d_ff, d_in, n_frequencies, max_chunks, max_partial, max_ranks, n_rows;

    explicit Sizes(const gs_decode_call* call) {
        *this = Sizes{};
        n_rows = call->n_rows;
        d_in = d_model = call->table.d_in;
        for (int64_t index = 0; index < call->n_layers; index++) {
            const gs_decode_layer& layer = call->layers[index];
            int64_t seen = layer.window && layer.window < call->capacity ? layer.window : call->capacity;
            grow(&d_attention, layer.n_heads * layer.head_dim);
            grow(&d_key, layer.n_kv_heads * layer.head_dim);
            grow(&d_ff, layer.gate.d_out);
            grow(&n_frequencies, layer.head_dim / 2);
            grow(&max_chunks, seen / CHUNK + 2);
            grow(&max_partial, layer.n_heads * (layer.head_dim + 2));
            grow(&max_ranks, rank_of(layer.q) + rank_of(layer.k) + rank_of(layer.v));
            grow(&max_ranks, rank_of(layer.gate) + rank_of(layer.up));
            grow(&max_ranks, rank_of(layer.o));
            grow(&max_ranks, rank_of(layer.down));
        }
        grow(&d_in, d_attention);
        grow(&d_in, d_ff);
    }
    Sizes() = default;
    static void grow(int64_t* a, int64_t b) { *a = *a < b ? b : *a; }
    int64_t rounded_bytes() const { return n_rows * ((d_in + GS_QUANT_UNIT - 1) / GS_QUANT_UNIT) * 40; }
};

// Hands out pieces of the scratch memory, each at a cache line of its own; with no memory it only counts.
struct Pieces {
    char* start;
    int64_t used;
    void* bytes(int64_t n) {
        void* piece = start ? start + used : nullptr;
        used += (n + 63) / 64 * 64;
        return piece;
    }
    float* floats(int64_t n) { return (float*)bytes(n * 4); }
};

// What all threads see.
struct Shared {
    gs_barrier* barrier;
    int64_t* taken;
    float *q, *k, *v, *partial, *out, *gate, *up;
    float* low;  // A x of a stage's deltas, one matrix after the other: [n_rows, rank]

    Shared(const gs_decode_call* call, const Sizes& sizes, Pieces& pieces) {
        int64_t n = sizes.n_rows;
        barrier = (gs_barrier*)pieces.bytes(sizeof(gs_barrier));
        taken = (int64_t*)pieces.bytes(n_counters(call) * 8);
        q = pieces.floats(n * sizes.d_attention);
        k = pieces.floats(n * sizes.d_key);
        v = pieces.floats(n * sizes.d_key);
        partial = pieces.floats(n * sizes.max_chunks * sizes.max_partial);
        out = pieces.floats(n * sizes.d_model);
        gate = pieces.floats(n * sizes.d_ff);
        up = pieces.floats(n * sizes.d_ff);
        low = pieces.floats(n * sizes.max_ranks);
    }
    static int64_t n_counters(const gs_decode_call* call) { return call->n_layers * COUNTERS + 1; }
};

// What one thread has for itself.
struct Own {
    float *x, *pair;       // residual stream; queries of a pair of heads
    float *cosine, *sine;  // [n_rows, head_dim / 2] of `frequencies`
    const float* frequencies;
    Inputs in;

    Own(const Sizes& sizes, Pieces& pieces) {
        x = pieces.floats(sizes.n_rows * sizes.d_model);
        pair = pieces.floats(4 * sizes.n_frequencies);
        cosine = pieces.floats(sizes.n_rows * sizes.n_frequencies);
        sine = pieces.floats(sizes.n_rows * sizes.n_frequencies);
        frequencies = nullptr;
        in = Inputs{};
        in.x = pieces.floats(sizes.n_rows * sizes.d_in);
        in.rounded = pieces.bytes(sizes.rounded_bytes());
        in.ordered = pieces.floats(sizes.n_rows * sizes.d_in);
        in.n_rows = sizes.n_rows;
    }
};
