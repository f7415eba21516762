// Attention of one chunk of queries and one key head at a time, over tiles of keys.

// Tokens that share packed keys. A multiple of TILE; the axis is cut at its multiples.
constexpr int64_t CHUNK = 512;

// The call's sizes, as the operands have them.
template <class Units>
struct Sizes {
    int64_t n_groups, n_chunks, width, n_units, n_panels, n_key_units;

    explicit Sizes(const gs_attention_call& call)
        : n_groups(call.n_heads / call.n_kv_heads),
          n_chunks((call.n_tokens + CHUNK - 1) / CHUNK),
          width(round_up(call.head_dim, FILL)),
          n_units(width / Units::PER_UNIT),
          n_panels(round_up((call.n_tokens < CHUNK ? call.n_tokens : CHUNK) * n_groups, TILE) / TILE),
          n_key_units(TILE / Units::PER_UNIT) {}
};

static inline int64_t chunk_end(const gs_attention_call& call, int64_t chunk) {
    int64_t end = (chunk + 1) * CHUNK;
    return end < call.n_tokens ? end : call.n_tokens;
}

// The first chunk of keys that some query of this chunk sees; at most the chunk itself.
static int64_t first_chunk(const gs_attention_call& call, int64_t chunk) {
    int64_t least = chunk * CHUNK;
    for (int64_t t = chunk * CHUNK; t < chunk_end(call, chunk); t++)
        if (call.first[t] <= t && call.first[t] < least) least = call.first[t];
    return least < 0 ? 0 : least / CHUNK;
}

template <class T>
static inline const T* row_of(const gs_heads& heads, int64_t token, int64_t head) {
    return (const T*)heads.data + token * heads.token_stride + head * heads.head_stride;
}

// Pack the rows of a tile of keys; those behind the last token are zeros.
template <class T, class Units>
static void pack_keys(const gs_attention_call& call, const gs_heads& heads, int64_t tile, int64_t head, float* rows,
                      const Sizes<Units>& sizes) {
    int64_t n = call.n_tokens - tile < TILE ? call.n_tokens - tile : TILE;
    for (int64_t i = 0; i < n; i++)
        pack_row(row_of<T>(heads, tile + i, head), rows + i * sizes.n_units, call.head_dim, sizes.width, Units());
    memset(rows + n * sizes.n_units, 0, (TILE - n) * sizes.n_units * sizeof(float));
}

// Pack the rows of a panel of queries.
template <class T, class Units>
static void pack_queries(const gs_attention_call& call, const gs_heads& heads, int64_t chunk, int64_t lane, int64_t kv_head,
                         const Panel& panel, float* rows, const Sizes<Units>& sizes) {
    int64_t n = panel.n_lanes;
    for (int64_t i = 0; i < n; i++) {
        int64_t token = chunk + (lane + i) / sizes.n_groups, head = kv_head * sizes.n_groups + (lane + i) % sizes.n_groups;
        pack_row(row_of<T>(heads, token, head), rows + i * sizes.n_units, call.head_dim, sizes.width, Units());
    }
    memset(rows + n * sizes.n_units, 0, (TILE - n) * sizes.n_units * sizeof(float));
}

template <class Units>
struct ForwardScratch {
    float *queries, *values, *total, *held, *most;   // of each panel
    float *keys, *values_of_keys;                    // of each tile of a chunk
    float *rows, *columns, *products, *weights, *low, *high;
    int64_t size;

    ForwardScratch(char* base, const Sizes<Units>& sizes) {
        Pieces pieces = {base, 0};
        queries = pieces.floats(sizes.n_panels * sizes.n_units * TILE);
        values = pieces.floats(sizes.n_panels * sizes.width * TILE);
        total = pieces.floats(sizes.n_panels * TILE);
        held = pieces.floats(sizes.n_panels * TILE);
        most = pieces.floats(sizes.n_panels * TILE);
        keys = pieces.floats(CHUNK * sizes.n_units);
        values_of_keys = pieces.floats(CHUNK * sizes.n_units);
        rows = pieces.floats(TILE * sizes.width);
        columns = pieces.floats(TILE * sizes.width);
        products = pieces.floats(TILE * TILE);
        weights = pieces.floats(TILE * TILE);
        low = pieces.floats(TILE);
        high = pieces.floats(TILE);
        size = pieces.used;
    }
};

template <class T, class Units, bool IS_CAPPED>
struct Forward {
    const gs_attention_call& call;
    const Sizes<Units>& sizes;
    const Scores<T, IS_CAPPED> scores;
    const ForwardScratch<Units> at;
    const int64_t chunk, kv_head;
    const bool tracks_maximum;

    Forward(const gs_attention_call& call, const Sizes<Units>& sizes, char* memory, int64_t chunk, int64_t kv_head)
        : call(call), sizes(sizes), scores(call), at(memory, sizes), chunk(chunk), kv_head(kv_head),
          tracks_maximum(!IS_CAPPED || call.cap > LARGEST_SAFE_CAP) {}

    int64_t n_lanes() const { return (chunk_end(call, chunk) - chunk * CHUNK) * sizes.n_groups; }
    int64_t n_panels() const { return (n_lanes() + TILE - 1) / TILE; }
    Panel panel(int64_t index) const {
        Panel made;
        made.set(call.first, chunk * CHUNK, index * TILE, n_lanes(), sizes.n_groups);
        return made;
    }
    Running running(int64_t index) const {
        return Running{at.total + index * TILE, at.held + index * TILE, at.most + index * TILE,
                       at.values + index * sizes.width * TILE};
    }

    void run() const {
        for (int64_t i = 0; i < n_panels(); i++) start(i);
        for (int64_t keys = first_chunk(call, chunk); keys <= chunk; keys++) {
            bool is_packed[CHUNK / TILE] = {};
            for (int64_t i = 0; i < n_panels(); i++) attend(i, keys, is_packed);
        }
        for (int64_t i = 0; i < n_panels(); i++) finish(i);
    }

    void start(int64_t index) const {
        pack_queries<T>(call, call.q, chunk * CHUNK, index * TILE, kv_head, panel(index), at.rows, sizes);
        transpose(at.rows, at.queries + index * sizes.n_units * TILE, TILE, sizes.n_units);
        Running sums = running(index);
        for (int64_t i = 0; i < TILE; i++) {
            sums.total[i] = sums.held[i] = 0.0f;
            sums.most[i] = tracks_maximum ? LOWEST : 0.0f;
        }
        memset(sums.values, 0, sizes.width * TILE * sizeof(float));
    }

    void pack(int64_t keys, int64_t tile) const {
        int64_t token = keys * CHUNK + tile * TILE, place = tile * TILE * sizes.n_units;
        pack_keys<T>(call, call.k, token, kv_head, at.keys + place, sizes);
        pack_keys<T>(call, call.v, token, kv_head, at.rows, sizes);
        interleave<Units>(at.rows, at.columns, TILE, sizes.width);
        transpose(at.columns, at.values_of_keys + place, sizes.n_key_units, sizes.width);
    }

    void attend(int64_t index, int64_t keys, bool* is_packed) const {
        Panel queries = panel(index);
        for (int64_t tile = 0; tile < CHUNK / TILE; tile++) {
            Seen seen = queries.seen(keys * CHUNK + tile * TILE, Units::ROUND);
            if (seen.begin >= seen.end) continue;
            if (!is_packed[tile]) pack(keys, tile);
            is_packed[tile] = true;
            queries.bounds(keys * CHUNK + tile * TILE, at.low, at.high);
            attend_tile(index, tile, seen);
        }
    }

    void attend_tile(int64_t index, int64_t tile, Seen seen) const {
        constexpr int64_t PER_UNIT = Units::PER_UNIT;
        Running sums = running(index);
        Units::multiply(at.keys + (tile * TILE + seen.begin) * sizes.n_units, sizes.n_units,
                        at.queries + index * sizes.n_units * TILE, TILE, at.products + seen.begin * TILE, TILE,
                        seen.end - seen.begin, TILE, sizes.n_units, false);
        if (tracks_maximum) raise<T>(scores, at.products, seen, at.low, at.high, sums, sizes.width);
        auto weigh_all = seen.is_partial ? weigh<T, Units, IS_CAPPED, true> : weigh<T, Units, IS_CAPPED, false>;
        weigh_all(scores, at.products, at.weights, seen, at.low, at.high, sums);
        Units::multiply(at.values_of_keys + tile * TILE * sizes.n_units + seen.begin / PER_UNIT, sizes.n_key_units,
                        at.weights + seen.begin / PER_UNIT * TILE, TILE, sums.values, TILE, sizes.width, TILE,
                        (seen.end - seen.begin) / PER_UNIT, true);
    }

    void finish(int64_t index) const {
        Panel queries = panel(index);
        Running sums = running(index);
        transpose(sums.values, at.rows, sizes.width, TILE);
        for (int64_t i = 0; i < queries.n_lanes; i++) {
            int64_t lane = index * TILE + i, token = chunk * CHUNK + lane / sizes.n_groups;
            int64_t head = kv_head * sizes.n_groups + lane % sizes.n_groups;
            bool sees = queries.last[i] >= 0;
            call.logsumexp[head * call.n_tokens + token] =
                sees ? sums.most[i] / Curves<T>::SCALE + logf(sums.total[i]) : -INFINITY;
            Sink<T> sink = {(T*)call.out, nullptr, call.head_dim, true, true};
            if (!sees) memset(at.rows + i * sizes.width, 0, sizes.width * sizeof(float));
            sink.put(token * call.n_heads + head, at.rows + i * sizes.width, call.head_dim,
                     sees ? 1.0f / sums.held[i] : 0.0f);
        }
    }
};

template <class T, class Units, bool IS_CAPPED>
static void forward(const gs_attention_call& call) {
    Sizes<Units> sizes(call);
    int64_t size = ForwardScratch<Units>(nullptr, sizes).size;
    take_turns(sizes.n_chunks * call.n_kv_heads, [&](int64_t item, int64_t) {
        static thread_local Scratch scratch;
        Units::begin();
        Forward<T, Units, IS_CAPPED>(call, sizes, scratch.at_least(size), item / call.n_kv_heads,
                                     item % call.n_kv_heads).run();
        Units::end();
    });
}
