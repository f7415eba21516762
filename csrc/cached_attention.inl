// Attention of the tokens of a pass to what caches hold, in the tiles of attention.inl. Included by unit.inl.
//
// Keys are counted by their positions, and tiles begin at multiples of TILE of them, so that a token's sums have one
// order whatever passes the document came in.

// Lanes (token, head) of an item: they share packed keys, and their sums stay in the second-level cache.
constexpr int64_t CACHED_LANES = 8 * TILE;

// A vector of a cache as a tensor of type T holds it, where it lies or in `to`.
template <class T>
static inline const T* read_cached(const T* from, const float*, T*, int64_t) { return from; }
template <class T, class C>
static const T* read_cached(const C* from, const float* scale, T* to, int64_t n) {
    vf factor = vset(scale ? *scale : 1.0f);
    auto piece = [&](int64_t i, int64_t m) { store(to + i, load(from + i, m) * factor, m); };
    over(n, [&](int64_t i) { piece(i, W); }, piece);
    return to;
}

// Some tokens of a segment, and one key head.
struct CachedItem {
    gs_segment segment;
    int64_t first, n_tokens, kv_head;  // tokens from row `first` of the segment on
    int64_t position() const { return segment.position + first; }
    int64_t length() const { return segment.position + segment.stop - segment.start; }
};

template <class T, class C, class Units, bool IS_CAPPED>
struct CachedForward {
    const gs_cached_attention_call& call;
    const Sizes<Units>& sizes;
    const Scores<T, IS_CAPPED> scores;
    const ForwardScratch<Units> at;
    const CachedItem item;
    const bool tracks_maximum;

    CachedForward(const gs_cached_attention_call& call, const gs_attention_call& like, const Sizes<Units>& sizes,
                  char* memory, const CachedItem& item)
        : call(call), sizes(sizes), scores(like), at(memory, sizes), item(item),
          tracks_maximum(!IS_CAPPED || call.cap > LARGEST_SAFE_CAP) {}

    int64_t n_lanes() const { return item.n_tokens * sizes.n_groups; }
    int64_t n_panels() const { return (n_lanes() + TILE - 1) / TILE; }
    int64_t token(int64_t lane) const { return lane / sizes.n_groups; }
    int64_t head(int64_t lane) const { return item.kv_head * sizes.n_groups + lane % sizes.n_groups; }
    int64_t first_seen(int64_t position) const {
        return call.window > 0 && position >= call.window ? position - call.window + 1 : 0;
    }
    Running running(int64_t index) const {
        return Running{at.total + index * TILE, at.held + index * TILE, at.most + index * TILE,
                       at.values + index * sizes.width * TILE};
    }

    Panel panel(int64_t index) const {
        Panel made;
        made.n_lanes = n_lanes() - index * TILE < TILE ? n_lanes() - index * TILE : TILE;
        for (int64_t i = 0; i < TILE; i++) {
            int64_t position = item.position() + token(index * TILE + i);
            made.first[i] = i < made.n_lanes ? first_seen(position) : INT64_MAX;
            made.last[i] = i < made.n_lanes ? position : -1;
        }
        made.least_first = made.first[0], made.most_last = made.last[made.n_lanes - 1];
        made.most_first = made.first[TILE - 1], made.least_last = made.n_lanes < TILE ? -1 : made.last[0];
        return made;
    }

    void run() const {
        const int64_t last = item.position() + item.n_tokens - 1;
        for (int64_t i = 0; i < n_panels(); i++) start(i);
        for (int64_t keys = first_seen(item.position()) / CHUNK; keys <= last / CHUNK; keys++) {
            bool is_packed[CHUNK / TILE] = {};
            for (int64_t i = 0; i < n_panels(); i++) attend(i, keys, is_packed);
        }
        for (int64_t i = 0; i < n_panels(); i++) finish(i);
    }

    void start(int64_t index) const {
        const int64_t n = panel(index).n_lanes;
        for (int64_t i = 0; i < n; i++) {
            const int64_t lane = index * TILE + i, row = item.segment.start + item.first + token(lane);
            pack_row(row_of<T>(call.q, row, head(lane)), at.rows + i * sizes.n_units, call.head_dim, sizes.width, Units());
        }
        memset(at.rows + n * sizes.n_units, 0, (TILE - n) * sizes.n_units * sizeof(float));
        transpose(at.rows, at.queries + index * sizes.n_units * TILE, TILE, sizes.n_units);
        Running sums = running(index);
        for (int64_t i = 0; i < TILE; i++) {
            sums.total[i] = sums.held[i] = 0.0f;
            sums.most[i] = tracks_maximum ? LOWEST : 0.0f;
        }
        memset(sums.values, 0, sizes.width * TILE * sizeof(float));
    }

    // The vectors of TILE positions; zeros where a ring holds another position, or none.
    void pack_cached(const void* stored, const float* scales, int64_t position, float* rows) const {
        const int64_t base = (item.segment.slot * call.n_kv_heads + item.kv_head) * call.n_places;
        T* wide = (T*)at.columns;
        for (int64_t i = 0; i < TILE; i++, position++) {
            float* to = rows + i * sizes.n_units;
            if (position >= item.length() || position < item.length() - call.n_places) {
                memset(to, 0, sizes.n_units * sizeof(float));
                continue;
            }
            const int64_t place = base + position % call.n_places;
            const C* from = (const C*)stored + place * call.head_dim;
            pack_row(read_cached(from, scales ? scales + place : nullptr, wide, call.head_dim), to, call.head_dim, sizes.width, Units());
        }
    }

    void pack(int64_t position, int64_t place) const {
        pack_cached(call.keys, call.key_scales, position, at.keys + place);
        pack_cached(call.values, call.value_scales, position, at.rows);
        interleave<Units>(at.rows, at.columns, TILE, sizes.width);
        transpose(at.columns, at.values_of_keys + place, sizes.n_key_units, sizes.width);
    }

    void attend(int64_t index, int64_t keys, bool* is_packed) const {
        const Panel queries = panel(index);
        for (int64_t tile = 0; tile < CHUNK / TILE; tile++) {
            const int64_t position = keys * CHUNK + tile * TILE;
            Seen seen = queries.seen(position, Units::ROUND);
            if (seen.begin >= seen.end) continue;
            if (!is_packed[tile]) pack(position, tile * TILE * sizes.n_units);
            is_packed[tile] = true;
            queries.bounds(position, at.low, at.high);
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
        Running sums = running(index);
        const int64_t n = panel(index).n_lanes;
        transpose(sums.values, at.rows, sizes.width, TILE);
        for (int64_t i = 0; i < n; i++) {
            const int64_t lane = index * TILE + i, row = item.segment.start + item.first + token(lane);
            Sink<T> sink = {(T*)call.out, nullptr, call.head_dim, true, true};
            sink.put(row * call.n_heads + head(lane), at.rows + i * sizes.width, call.head_dim, 1.0f / sums.held[i]);
        }
    }
};

// Item `index` of all segments' items, each of at most `n_tokens` tokens and one key head.
static CachedItem cached_item(const gs_cached_attention_call& call, int64_t index, int64_t n_tokens) {
    for (int64_t s = 0;; s++) {
        const gs_segment& segment = call.segments[s];
        const int64_t length = segment.stop - segment.start;
        const int64_t n_items = (length + n_tokens - 1) / n_tokens * call.n_kv_heads;
        if (index >= n_items) {
            index -= n_items;
            continue;
        }
        const int64_t first = index / call.n_kv_heads * n_tokens;
        return CachedItem{segment, first, length - first < n_tokens ? length - first : n_tokens, index % call.n_kv_heads};
    }
}

template <class T, class C, class Units, bool IS_CAPPED>
static void cached_forward(const gs_cached_attention_call& call) {
    gs_attention_call like = {};
    like.n_heads = call.n_heads, like.n_kv_heads = call.n_kv_heads, like.head_dim = call.head_dim;
    like.scale = call.scale, like.cap = call.cap;
    const int64_t n_groups = call.n_heads / call.n_kv_heads;
    like.n_tokens = n_groups < CACHED_LANES ? CACHED_LANES / n_groups : 1;
    const Sizes<Units> sizes(like);
    const int64_t size = ForwardScratch<Units>(nullptr, sizes).size;
    int64_t n_items = 0;
    for (int64_t s = 0; s < call.n_segments; s++)
        n_items += (call.segments[s].stop - call.segments[s].start + like.n_tokens - 1) / like.n_tokens * call.n_kv_heads;
    take_turns(n_items, [&](int64_t index, int64_t) {
        static thread_local Scratch scratch;
        Units::begin();
        // The last tokens first: they see the most keys.
        CachedForward<T, C, Units, IS_CAPPED>(call, like, sizes, scratch.at_least(size),
                                              cached_item(call, n_items - 1 - index, like.n_tokens)).run();
        Units::end();
    });
}

template <class T, class Units, bool IS_CAPPED>
static void cached_forward_of(const gs_cached_attention_call& call) {
    if (call.cache_dtype == GS_INT8) cached_forward<T, byte, Units, IS_CAPPED>(call);
    else if (call.cache_dtype == GS_BFLOAT16) cached_forward<T, bf16, Units, IS_CAPPED>(call);
    else cached_forward<T, float, Units, IS_CAPPED>(call);
}

static void cached_attention(const gs_cached_attention_call* call) {
    bool is_capped = call->cap > 0.0f;
    if (call->dtype == GS_FLOAT32) (is_capped ? cached_forward_of<float, Floats, true> : cached_forward_of<float, Floats, false>)(*call);
    else (is_capped ? cached_forward_of<bf16, Bf16Units, true> : cached_forward_of<bf16, Bf16Units, false>)(*call);
}
