// Gradients of attention, for a chunk of queries, a chunk of keys and one key head at a time.
//
// Chunks are taken in waves: in wave w each chunk of queries meets the chunk of keys w places before it. Nothing is
// written twice within a wave, and every sum is added up in the order of the waves whatever the number of threads.

template <class Units>
struct BackwardScratch {
    float *keys, *values, *columns_of_keys, *dk, *dv;             // of a chunk of keys
    float *queries, *grads, *queries_by_token, *grads_by_token;   // of a panel of queries, as right operands
    float *dq, *rows, *columns, *low, *high, *total, *delta;      // of that panel too
    float *products, *dweights, *weights, *left, *right;          // of a tile
    int64_t size;

    BackwardScratch(char* base, const Sizes<Units>& sizes) {
        Pieces pieces = {base, 0};
        float** chunks[] = {&keys, &values, &columns_of_keys};
        for (float** chunk : chunks) *chunk = pieces.floats(CHUNK * sizes.n_units);
        float** panels[] = {&queries, &grads, &queries_by_token, &grads_by_token};
        for (float** panel : panels) *panel = pieces.floats(TILE * sizes.n_units);
        float** wide[] = {&dq, &rows, &columns};
        for (float** panel : wide) *panel = pieces.floats(TILE * sizes.width);
        float** tiles[] = {&products, &dweights, &weights, &left, &right};
        for (float** tile : tiles) *tile = pieces.floats(TILE * TILE);
        float** lanes[] = {&low, &high, &total, &delta};
        for (float** lane : lanes) *lane = pieces.floats(TILE);
        dk = pieces.floats(CHUNK * sizes.width);
        dv = pieces.floats(CHUNK * sizes.width);
        size = pieces.used;
    }
};

// Which chunks meet, and where sums wait between waves (nowhere, where there is only one).
template <class T>
struct Waves {
    int64_t n;
    int64_t *first_keys, *last_wave;  // of each chunk of queries; of each chunk of keys
    float *dq, *dk, *dv;

    Waves(const gs_attention_call& call, int64_t n_chunks)
        : n(1), first_keys((int64_t*)malloc(2 * n_chunks * sizeof(int64_t))), last_wave(first_keys + n_chunks) {
        for (int64_t i = 0; i < n_chunks; i++) {
            first_keys[i] = first_chunk(call, i);
            for (int64_t keys = first_keys[i]; keys <= i; keys++) last_wave[keys] = i - keys;
            if (i - first_keys[i] >= n) n = i - first_keys[i] + 1;
        }
        dq = (float*)call.dq, dk = (float*)call.dk, dv = (float*)call.dv;
    }
    ~Waves() { free(first_keys); }
};

template <class T, class Units, bool IS_CAPPED>
struct Backward {
    const gs_attention_call& call;
    const Sizes<Units>& sizes;
    const Waves<T>& waves;
    const Scores<T, IS_CAPPED> scores;
    const BackwardScratch<Units> at;
    const int64_t chunk, keys, kv_head;

    Backward(const gs_attention_call& call, const Sizes<Units>& sizes, const Waves<T>& waves, char* memory, int64_t chunk,
             int64_t keys, int64_t kv_head)
        : call(call), sizes(sizes), waves(waves), scores(call), at(memory, sizes), chunk(chunk), keys(keys),
          kv_head(kv_head) {}

    int64_t n_lanes() const { return (chunk_end(call, chunk) - chunk * CHUNK) * sizes.n_groups; }

    void run() const {
        bool is_packed[CHUNK / TILE] = {};
        for (int64_t lane = 0; lane < n_lanes(); lane += TILE) {
            Panel queries;
            queries.set(call.first, chunk * CHUNK, lane, n_lanes(), sizes.n_groups);
            bool is_begun = false;
            for (int64_t tile = 0; tile < CHUNK / TILE; tile++) {
                Seen seen = queries.seen(keys * CHUNK + tile * TILE, Units::ROUND);
                if (seen.begin >= seen.end) continue;
                if (!is_packed[tile]) pack(tile);
                is_packed[tile] = true;
                if (!is_begun) begin_panel(lane, queries);
                queries.bounds(keys * CHUNK + tile * TILE, at.low, at.high);
                differentiate(tile, seen, is_begun);
                is_begun = true;
            }
            end_panel(lane, queries, is_begun);
        }
        end_keys(is_packed);
    }

    void pack(int64_t tile) const {
        int64_t token = keys * CHUNK + tile * TILE, place = tile * TILE * sizes.n_units;
        pack_keys<T>(call, call.v, token, kv_head, at.values + place, sizes);
        pack_keys<T>(call, call.k, token, kv_head, at.keys + place, sizes);
        interleave<Units>(at.keys + place, at.columns, TILE, sizes.width);
        transpose(at.columns, at.columns_of_keys + place, sizes.n_key_units, sizes.width);
        memset(at.dk + tile * TILE * sizes.width, 0, TILE * sizes.width * sizeof(float));
        memset(at.dv + tile * TILE * sizes.width, 0, TILE * sizes.width * sizeof(float));
    }

    void begin_panel(int64_t lane, const Panel& queries) const {
        pack_queries<T>(call, call.q, chunk * CHUNK, lane, kv_head, queries, at.rows, sizes);
        transpose(at.rows, at.queries, TILE, sizes.n_units);
        interleave<Units>(at.rows, at.queries_by_token, TILE, sizes.width);
        pack_queries<T>(call, call.grad, chunk * CHUNK, lane, kv_head, queries, at.rows, sizes);
        transpose(at.rows, at.grads, TILE, sizes.n_units);
        interleave<Units>(at.rows, at.grads_by_token, TILE, sizes.width);
        for (int64_t i = 0; i < TILE; i++) {
            bool is_there = i < queries.n_lanes;
            int64_t token = chunk * CHUNK + (lane + i) / sizes.n_groups;
            int64_t head = kv_head * sizes.n_groups + (lane + i) % sizes.n_groups;
            at.total[i] = is_there ? call.logsumexp[head * call.n_tokens + token] * Curves<T>::SCALE : 0.0f;
            at.delta[i] = is_there ? overlap(token, head) : 0.0f;
        }
    }

    // grad . out of one query, which is what the softmax's gradient subtracts.
    float overlap(int64_t token, int64_t head) const {
        const T *grad = row_of<T>(call.grad, token, head);
        const T *out = (const T*)call.out + (token * call.n_heads + head) * call.head_dim;
        vf sum = vzero();
        auto piece = [&](int64_t i, int64_t n) { sum = vfma(load(grad + i, n), load(out + i, n), sum); };
        over(call.head_dim, [&](int64_t i) { piece(i, W); }, piece);
        return hsum(sum);
    }

    void differentiate(int64_t tile, Seen seen, bool adds) const {
        constexpr int64_t PER_UNIT = Units::PER_UNIT;
        int64_t row = tile * TILE + seen.begin, n_rows = seen.end - seen.begin, skipped = seen.begin * TILE;
        Units::multiply(at.keys + row * sizes.n_units, sizes.n_units, at.queries, TILE, at.products + skipped, TILE,
                        n_rows, TILE, sizes.n_units, false);
        Units::multiply(at.values + row * sizes.n_units, sizes.n_units, at.grads, TILE, at.dweights + skipped, TILE,
                        n_rows, TILE, sizes.n_units, false);
        auto weigh = seen.is_partial ? weigh_backward<T, Units, IS_CAPPED, true> : weigh_backward<T, Units, IS_CAPPED, false>;
        float* left = PER_UNIT == 1 ? at.right : at.left;  // floats are stored alike as both operands
        weigh(scores, at.products, at.dweights, at.weights, left, at.right, seen, at.low, at.high,
              Ahead{at.total, at.delta});
        Units::multiply(at.weights + skipped / PER_UNIT, sizes.n_key_units, at.grads_by_token, sizes.width,
                        at.dv + row * sizes.width, sizes.width, n_rows, sizes.width, sizes.n_key_units, true);
        Units::multiply(left + skipped / PER_UNIT, sizes.n_key_units, at.queries_by_token, sizes.width,
                        at.dk + row * sizes.width, sizes.width, n_rows, sizes.width, sizes.n_key_units, true);
        Units::multiply(at.columns_of_keys + tile * TILE * sizes.n_units + seen.begin / PER_UNIT, sizes.n_key_units,
                        at.right + skipped / PER_UNIT, TILE, at.dq, TILE, sizes.width, TILE, n_rows / PER_UNIT, adds);
    }

    void end_panel(int64_t lane, const Panel& queries, bool is_begun) const {
        if (is_begun) transpose(at.dq, at.rows, sizes.width, TILE);
        else memset(at.rows, 0, TILE * sizes.width * sizeof(float));
        int64_t wave = chunk - keys;
        Sink<T> sink = {(T*)call.dq, waves.dq, call.head_dim, wave == 0, chunk - wave == waves.first_keys[chunk]};
        for (int64_t i = 0; i < queries.n_lanes; i++) {
            int64_t token = chunk * CHUNK + (lane + i) / sizes.n_groups;
            int64_t head = kv_head * sizes.n_groups + (lane + i) % sizes.n_groups;
            sink.put(token * call.n_heads + head, at.rows + i * sizes.width, call.head_dim, call.scale);
        }
    }

    void end_keys(const bool* is_packed) const {
        int64_t wave = chunk - keys;
        bool is_last = wave == waves.last_wave[keys];
        Sink<T> dk = {(T*)call.dk, waves.dk, call.head_dim, wave == 0, is_last};
        Sink<T> dv = {(T*)call.dv, waves.dv, call.head_dim, wave == 0, is_last};
        for (int64_t token = keys * CHUNK; token < chunk_end(call, keys); token++) {
            int64_t place = (token - keys * CHUNK) * sizes.width, row = token * call.n_kv_heads + kv_head;
            bool is_there = is_packed[(token - keys * CHUNK) / TILE];
            if (!is_there) memset(at.dk + place, 0, sizes.width * sizeof(float));
            if (!is_there) memset(at.dv + place, 0, sizes.width * sizeof(float));
            dk.put(row, at.dk + place, call.head_dim, call.scale);
            dv.put(row, at.dv + place, call.head_dim, 1.0f);
        }
    }
};

template <class T, class Units, bool IS_CAPPED>
static void backward(const gs_attention_call& call) {
    Sizes<Units> sizes(call);
    Waves<T> waves(call, sizes.n_chunks);
    int64_t n = call.n_tokens * call.head_dim, size = BackwardScratch<Units>(nullptr, sizes).size;
    // Tensors of float32 hold the sums between waves themselves.
    SharedScratch shared(sizeof(T) < 4 && waves.n > 1 ? n * (call.n_heads + 2 * call.n_kv_heads) * 4 : 0);
    if (shared.data) {
        waves.dq = (float*)shared.data;
        waves.dk = waves.dq + n * call.n_heads;
        waves.dv = waves.dk + n * call.n_kv_heads;
    }
    for (int64_t wave = 0; wave < waves.n; wave++)
        take_turns((sizes.n_chunks - wave) * call.n_kv_heads, [&](int64_t item, int64_t) {
            int64_t chunk = wave + item / call.n_kv_heads, keys = chunk - wave;
            if (keys < waves.first_keys[chunk]) return;
            static thread_local Scratch scratch;
            Units::begin();
            Backward<T, Units, IS_CAPPED>(call, sizes, waves, scratch.at_least(size), chunk, keys,
                                          item % call.n_kv_heads).run();
            Units::end();
        });
}
