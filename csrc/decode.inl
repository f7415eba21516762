// One token of each of some documents through all blocks, in one parallel region. Included by unit.inl.
//
// Matrices are shared out block by block. What lies between them is so little that each thread does all of it for
// itself, on a residual stream of its own: all threads compute the same numbers, and nobody waits.
// Elements of a cache of 8 bits, before their scale.
struct byte {
    int8_t bits;
};
static inline vf vload(const byte* p) {
#if defined(__AVX512F__)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
    return (vf)p->bits;
#endif
}
static inline vf load_n(const byte* p, int64_t n) {
    float wide[W] = {};
    for (int64_t i = 0; i < n; i++) wide[i] = p[i].bits;
    return vload(wide);
}

namespace step {

#include "decode_team.inl"
#include "decode_pairs.inl"
#include "decode_products.inl"
#include "decode_attention.inl"
#include "decode_deltas.inl"
#include "decode_memory.inl"

// Everything one thread knows during a call.
struct Worker {
    const gs_decode_call* call;
    const Sizes& sizes;
    const Shared& shared;
    Own& own;
    Team team;

    int64_t chunk_of(int64_t position) const { return position / CHUNK; }
    // The first position a layer's query at `position` sees.
    static int64_t first_seen(const gs_decode_layer& layer, int64_t position) {
        return layer.window && position >= layer.window ? position - layer.window + 1 : 0;
    }
    int64_t chunks_seen(const gs_decode_layer& layer, int64_t position) const {
        return chunk_of(position) - chunk_of(first_seen(layer, position)) + 1;
    }
    float* partial(const gs_decode_layer& layer, int64_t row, int64_t head, int64_t chunk) const {
        return shared.partial + ((row * layer.n_heads + head) * sizes.max_chunks + chunk) * (layer.head_dim + 2);
    }

    // to = from / rms(from) * (1 + weight) for one row, added to `to` where asked.
    template <class T>
    void norm_row(const float* from, const T* weight, int64_t width, float* to, bool is_added) const {
        vf scale = vset(root_scale(from, width, call->eps));
        auto piece = [&](int64_t i, int64_t n) {
            vf y = load(from + i, n) * scale * (vset(1.0f) + load(weight + i, n));
            store(to + i, is_added ? load(to + i, n) + y : y, n);
        };
        over(width, [&](int64_t i) { piece(i, W); }, piece);
    }
    void norm(const float* from, const void* weight, int64_t width, float* to, bool is_added) const {
        if (call->norm_dtype == GS_BFLOAT16) norm_row(from, (const bf16*)weight, width, to, is_added);
        else norm_row(from, (const float*)weight, width, to, is_added);
    }

    // Inputs of the matrices that follow: the residual stream, normalized.
    void enter(const void* weight) {
        for (int64_t row = 0; row < sizes.n_rows; row++)
            norm(own.x + row * sizes.d_model, weight, sizes.d_model, own.in.x + row * sizes.d_model, false);
        own.in.renew();
    }
    // Add what a sublayer put out to the residual stream.
    void leave(const void* weight) {
        for (int64_t row = 0; row < sizes.n_rows; row++) {
            float *x = own.x + row * sizes.d_model, *y = shared.out + row * sizes.d_model;
            if (weight) norm(y, weight, sizes.d_model, x, true);
            else {
                auto piece = [&](int64_t i, int64_t n) { store(x + i, load(x + i, n) + load(y + i, n), n); };
                over(sizes.d_model, [&](int64_t i) { piece(i, W); }, piece);
            }
        }
    }

    // Begin a stage of n matrices: make this thread's part of what their deltas need of the input.
    void lower(const gs_matrix* const* all, int n) {
        int64_t ranks = 0;
        for (int which = 0; which < n; which++) ranks += rank_of(*all[which]);
        if (!ranks) return;
        int64_t begin = ranks * team.thread / team.n_threads, end = ranks * (team.thread + 1) / team.n_threads;
        float* low = shared.low;
        for (int which = 0; which < n; which++) {
            const int64_t rank = rank_of(*all[which]), first = begin > 0 ? begin : 0, last = end < rank ? end : rank;
            if (first < last) lower_part(*all[which], own.in, call->adapters, first, last, low);
            begin -= rank;
            end -= rank;
            low += rank * sizes.n_rows;
        }
        team.arrive();
    }
    // Blocks first to last of a matrix, delta included; `ranks` is of the matrices before it in this stage.
    void take(const gs_matrix& m, int64_t first, int64_t last, float* y, int64_t ranks = 0) {
        prepare(m, own.in);
        ask_for_outputs(m, call->adapters, first, last);
        take_blocks(m, own.in, first, last, y);
        if (!m.delta) return;
        team.await();
        add_delta(m, call->adapters, shared.low + ranks * sizes.n_rows, {sizes.n_rows, first, last}, y);
    }

    void multiply(const gs_matrix& m, float* y) {
        const gs_matrix* all[1] = {&m};
        lower(all, 1);
        team.share_pieces(n_blocks(m), least_blocks(m),
                          [&](int64_t begin, int64_t end) { take(m, begin, end, y); });
    }
    // q, k and v in one stage: their blocks are counted through.
    void make_queries(const gs_decode_layer& layer) {
        const gs_matrix* all[3] = {&layer.q, &layer.k, &layer.v};
        float* to[3] = {shared.q, shared.k, shared.v};
        int64_t n = n_blocks(layer.q) + n_blocks(layer.k) + n_blocks(layer.v);
        lower(all, 3);
        team.share_pieces(n, least_blocks(layer.q), [&](int64_t begin, int64_t end) {
            for (int64_t which = 0, ranks = 0; which < 3; ranks += rank_of(*all[which]), which++) {
                int64_t here = n_blocks(*all[which]), first = begin > 0 ? begin : 0, last = end < here ? end : here;
                if (first < last) take(*all[which], first, last, to[which], ranks);
                begin -= here;
                end -= here;
            }
        });
    }

    void find_angles(const gs_decode_layer& layer) {
        if (own.frequencies == layer.frequencies) return;
        own.frequencies = layer.frequencies;
        int64_t half = layer.head_dim / 2;
        for (int64_t row = 0; row < sizes.n_rows; row++)
            for (int64_t i = 0; i < half; i++) {
                float angle = (float)call->positions[row] * layer.frequencies[i];
                own.cosine[row * half + i] = cosf(angle);
                own.sine[row * half + i] = sinf(angle);
            }
    }
    // One head's vector, normalized where a layer does that, and turned to its row's position.
    void turn_head(const gs_decode_layer& layer, const float* from, const void* weight, int64_t row, float* to) {
        int64_t half = layer.head_dim / 2;
        if (weight) norm(from, weight, layer.head_dim, to, false);
        else memcpy(to, from, layer.head_dim * sizeof(float));
        const float *c = own.cosine + row * half, *s = own.sine + row * half;
        auto piece = [&](int64_t i, int64_t n) {
            vf a = load(to + i, n), b = load(to + half + i, n), cos = load(c + i, n), sin = load(s + i, n);
            store(to + i, a * cos - b * sin, n);
            store(to + half + i, b * cos + a * sin, n);
        };
        over(half, [&](int64_t i) { piece(i, W); }, piece);
    }

    template <class C>
    void write_key(const gs_decode_layer& layer, const Cached<C>& cache, int64_t row, int64_t kv_head) {
        int64_t head = (row * layer.n_kv_heads + kv_head) * layer.head_dim;
        int64_t place = call->positions[row] % layer.n_places, at = place * layer.head_dim;
        turn_head(layer, shared.k + head, layer.k_norm, row, own.pair);
        write_vector(own.pair, layer.head_dim, cache.keys + at, cache.key_scales + place);
        write_vector(shared.v + head, layer.head_dim, cache.values + at, cache.value_scales + place);
    }
    // n chunks of one key head from the index-th on of those the row sees; few where several pairs of heads read them.
    struct Turn {
        int64_t row, kv_head, index, n;
    };
    Turn turn_of(const gs_decode_layer& layer, int64_t number, int64_t most) const {
        int64_t row = 0;
        for (int64_t here; number >= (here = layer.n_kv_heads * chunks_seen(layer, call->positions[row])); row++)
            number -= here;
        const int64_t n_chunks = chunks_seen(layer, call->positions[row]), index = number % n_chunks;
        const int64_t left = n_chunks - index, limit = layer.n_heads > 2 * layer.n_kv_heads ? 1 : MOST_CHUNKS;
        if (most > limit) most = limit;
        return Turn{row, number / n_chunks, index, most < left ? most : left};
    }
    // A turn, for every query head that shares its key head.
    template <class C>
    void read_chunks(const gs_decode_layer& layer, const Turn& turn, Pair<C>& pair) {
        const int64_t row = turn.row, n_groups = layer.n_heads / layer.n_kv_heads, H = layer.head_dim;
        const int64_t position = call->positions[row], seen = first_seen(layer, position);
        const int64_t begin = (chunk_of(seen) + turn.index) * CHUNK, end = begin + turn.n * CHUNK;
        const Cached<C> cache = cached<C>(layer, call->slots[row], turn.kv_head);
        if (layer.k.values && end > position) write_key(layer, cache, row, turn.kv_head);
        Reader<C> reader(layer, cache, begin > seen ? begin : seen, end > position ? position + 1 : end, pair);
        for (int64_t g = 0; g < n_groups; g += 2) {
            int64_t head = turn.kv_head * n_groups + g, second = g + 1 < n_groups ? head + 1 : head;
            if (pair.owner != row * layer.n_heads + head) {
                turn_head(layer, shared.q + (row * layer.n_heads + head) * H, layer.q_norm, row, own.pair);
                turn_head(layer, shared.q + (row * layer.n_heads + second) * H, layer.q_norm, row, own.pair + H);
                pair.prepare(own.pair, row * layer.n_heads + head);
            }
            reader.read(partial(layer, row, head, turn.index), partial(layer, row, second, turn.index));
        }
    }
    template <class C>
    void attend_to(const gs_decode_layer& layer, const C*) {
        Pair<C> pair(layer.head_dim);
        int64_t n = 0;
        for (int64_t row = 0; row < sizes.n_rows; row++)
            n += layer.n_kv_heads * chunks_seen(layer, call->positions[row]);
        team.share_pieces(n, 1, [&](int64_t first, int64_t last) {
            for (Turn turn; first < last; first += turn.n)
                read_chunks(layer, turn = turn_of(layer, first, last - first), pair);
        });
    }
    void attend(const gs_decode_layer& layer) {
        find_angles(layer);
        if (call->cache_dtype == GS_INT8) attend_to(layer, (const byte*)nullptr);
        else if (call->cache_dtype == GS_BFLOAT16) attend_to(layer, (const bf16*)nullptr);
        else attend_to(layer, (const float*)nullptr);
    }
    // Inputs of the matrix behind attention: the chunks of each head, put together in their order.
    void gather(const gs_decode_layer& layer) {
        const int64_t H = layer.head_dim;
        for (int64_t row = 0; row < sizes.n_rows; row++)
            for (int64_t head = 0; head < layer.n_heads; head++) {
                int64_t n_chunks = chunks_seen(layer, call->positions[row]);
                float *to = own.in.x + (row * layer.n_heads + head) * H, most = -INFINITY, sum = 0.0f;
                for (int64_t chunk = 0; chunk < n_chunks; chunk++) {
                    float here = partial(layer, row, head, chunk)[0];
                    most = here > most || here != here ? here : most;
                }
                memset(to, 0, H * sizeof(float));
                for (int64_t chunk = 0; chunk < n_chunks; chunk++) {
                    const float* from = partial(layer, row, head, chunk);
                    float weight = n_chunks == 1 ? 1.0f : expf(from[0] - most);
                    sum += weight * from[1];
                    auto piece = [&](int64_t i, int64_t n) {
                        store(to + i, vfma(load(from + 2 + i, n), vset(weight), load(to + i, n)), n);
                    };
                    over(H, [&](int64_t i) { piece(i, W); }, piece);
                }
                auto piece = [&](int64_t i, int64_t n) { store(to + i, load(to + i, n) * vset(1.0f / sum), n); };
                over(H, [&](int64_t i) { piece(i, W); }, piece);
            }
        own.in.renew();
    }

    void open_gates(const gs_decode_layer& layer) {
        const gs_matrix &gate = layer.gate, &up = layer.up, *all[2] = {&gate, &up};
        lower(all, 2);
        team.share_pieces(n_blocks(gate), least_blocks(gate), [&](int64_t first, int64_t last) {
            take(gate, first, last, shared.gate);
            take(up, first, last, shared.up, rank_of(gate));
            int64_t begin = first * GS_QUANT_BLOCK, end = last_output(gate, last);
            for (int64_t row = 0; row < sizes.n_rows; row++) {
                float *g = shared.gate + row * gate.d_out + begin, *u = shared.up + row * gate.d_out + begin;
                auto piece = [&](int64_t i, int64_t n) {
                    vf x = load(g + i, n), bend;
                    store(g + i, x * gelu_share(x, &bend) * load(u + i, n), n);
                };
                over(end - begin, [&](int64_t i) { piece(i, W); }, piece);
            }
        });
    }

    void run_layer(const gs_decode_layer& layer) {
        enter(layer.before_attention);
        make_queries(layer);
        attend(layer);
        gather(layer);
        multiply(layer.o, shared.out);
        leave(layer.after_attention);
        enter(layer.before_feed_forward);
        open_gates(layer);
        memcpy(own.in.x, shared.gate, sizes.n_rows * layer.down.d_in * sizeof(float));
        own.in.renew();
        multiply(layer.down, shared.out);
        leave(layer.after_feed_forward);
    }
    void run() {
        for (int64_t row = 0; row < sizes.n_rows; row++)
            look_up(call->table, call->token_ids[row], call->embedding_scale, own.x + row * sizes.d_model);
        for (int64_t index = 0; index < call->n_layers; index++) run_layer(call->layers[index]);
        enter(call->last_norm);
        const gs_matrix& m = call->table;
        team.share_pieces(n_blocks(m), least_blocks(m), [&](int64_t first, int64_t last) {
            take(m, first, last, call->logits);
            for (int64_t row = 0; call->cap > 0.0f && row < sizes.n_rows; row++)
                cap_scores(call->logits + row * m.d_out + first * GS_QUANT_BLOCK,
                           last_output(m, last) - first * GS_QUANT_BLOCK, call->cap);
        });
    }
};

static void decode_scratch(const gs_decode_call* call, int64_t* n_bytes) {
    const Sizes sizes(call);
    Pieces pieces = {nullptr, 0};
    Shared shared(call, sizes, pieces);
    for (int64_t thread = 0; thread < call->n_threads; thread++) Own own(sizes, pieces);
    *n_bytes = pieces.used;
}

static void decode(const gs_decode_call* call) {
    const Sizes sizes(call);
    Pieces pieces = {(char*)call->scratch, 0};
    const Shared shared(call, sizes, pieces);
    memset(shared.barrier, 0, sizeof(gs_barrier));
    memset(shared.taken, 0, Shared::n_counters(call) * 8);
    struct Context {
        const gs_decode_call* call;
        const Sizes* sizes;
        const Shared* shared;
        Pieces rest;
    } context = {call, &sizes, &shared, pieces};
    gs_run_team((int32_t)call->n_threads,
                [](void* data, int32_t thread, int32_t n_threads) {
                    const Context* c = (const Context*)data;
                    Pieces rest = c->rest;
                    for (int32_t before = 0; before < thread; before++) Own skipped(*c->sizes, rest);
                    Own own(*c->sizes, rest);
                    Team team = {c->shared->barrier, c->shared->taken, n_threads, thread, 0};
                    Worker{c->call, *c->sizes, *c->shared, own, team}.run();
                },
                &context);
}

static void dense_linear(const float* x, const void* weights, float* y, int64_t n_rows, int64_t d_in, int64_t d_out,
                         int32_t dtype) {
    const gs_matrix m = {weights, nullptr, nullptr, d_in, d_out, 0, dtype == GS_BFLOAT16 ? 16 : 32, 0};
    Inputs in = {};
    in.x = (float*)x;
    in.n_rows = n_rows;
    if (dtype == GS_BFLOAT16) {
        in.ordered = (float*)malloc(n_rows * d_in * sizeof(float));
        if (!in.ordered) abort();
        prepare(m, in);
    }
    const int64_t least = least_blocks(m), n = n_blocks(m);
    take_turns((n + least - 1) / least, [&](int64_t turn, int32_t) {
        int64_t end = (turn + 1) * least;
        take_blocks(m, in, turn * least, end < n ? end : n, y);
    });
    free(in.ordered);
}

}  // namespace step
using step::decode;
using step::dense_linear;
using step::decode_scratch;
