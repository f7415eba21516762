// The token whose value with its noise is largest. Included by sample.inl.

struct Leader {
    uint64_t noise;  // from which that of each token comes
    double best;
    int64_t token_id;
};

static inline uint64_t noise_of(uint64_t noise, int64_t token_id) {
    return scramble(noise + (uint64_t)(token_id + 1) * GOLDEN);
}

static inline void consider(Leader* leader, float value, int64_t token_id) {
    uint64_t bits = noise_of(leader->noise, token_id);
    if (rough_log(bits) > (value - (float)leader->best) * ROUGH_SLOPE + ROUGH_START) return;
    double noisy = (double)value + gumbel_of(bits);
    if (noisy < leader->best || (noisy == leader->best && token_id > leader->token_id)) return;
    leader->best = noisy;
    leader->token_id = token_id;
}

// Write the values of a page's tokens; return those that survive, a bit each.
static inline uint64_t survivors(const float* scores, const Cut& cut, float* values) {
    uint64_t found = 0;
    for (int64_t i = 0; i < PICK_PAGE; i += W) {
        vf x = vload(scores + i), value = cut.values_of(x);
        vstore(values + i, value);
        uint64_t lanes = lanes_at_least(x, vset(cut.edge)) & lanes_at_least(value, vset(cut.floor));
        found |= lanes << i;
    }
    return found;
}

// Of a page's tokens, those whose noise may be enough.
static inline uint64_t hopeful(const float* values, int64_t first, const Leader& leader) {
    float logs[PICK_PAGE];
    for (int64_t i = 0; i < PICK_PAGE; i++) logs[i] = rough_log(noise_of(leader.noise, first + i));
    uint64_t found = 0;
    vf best = vset((float)leader.best), slope = vset(ROUGH_SLOPE), start = vset(ROUGH_START);
    for (int64_t i = 0; i < PICK_PAGE; i += W) {
        vf most = vfma(vload(values + i) - best, slope, start);
        found |= (uint64_t)lanes_at_least(most, vload(logs + i)) << i;
    }
    return found;
}

static int64_t draw(const Pages& pages, const Cut& cut, uint64_t stream, uint64_t position, int64_t greedy) {
    const int64_t few = 8;
    Leader leader = {scramble(stream + (position + 1) * GOLDEN), -INFINITY, greedy};
    leader.best = gumbel_of(noise_of(leader.noise, greedy));
    float values[PICK_PAGE];
    for (int64_t page = 0; page < pages.n; page++) {
        if (pages.tops[page] < cut.edge || cut.value_of(pages.tops[page]) < cut.floor) continue;
        int64_t first = page * PICK_PAGE;
        uint64_t left = survivors(pages.at[page], cut, values);
        if (__builtin_popcountll(left) > few) left &= hopeful(values, first, leader);
        for (; left; left &= left - 1) {
            int64_t i = __builtin_ctzll(left);
            consider(&leader, values[i], first + i);
        }
    }
    return leader.token_id;
}
