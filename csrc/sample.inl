// One token from a row of scores: infer.sample.plain_pick. Included by unit.inl.
//
// A row is looked at in pages of GS_PICK_PAGE scores. A page stays where it is unless a bias or a penalty
// changes it; then a copy takes its place, as the last one does where it is not full. The best score of every
// page is found once, and most pages are never looked at again. What survives is never listed: it is all
// scores of at least an edge (top_k) whose value, (score - best) / temperature, is at least a floor (top_p,
// min_p). Both edges, found by `edge_of`, are exact, and sums of probabilities are integers: no order matters.
#include "sample_math.inl"
#include "sample_select.inl"
#include "sample_draw.inl"

// Lay a row out in pages; what is missing from the last one cannot be chosen.
static void lay_out(const float* row, int64_t vocab_size, const Pages& pages) {
    for (int64_t page = 0; page < pages.n; page++) pages.at[page] = row + page * PICK_PAGE;
    int64_t rest = vocab_size % PICK_PAGE, last = pages.n - 1;
    if (!rest) return;
    float* copy = pages.copies + last * PICK_PAGE;
    memcpy(copy, row + last * PICK_PAGE, rest * sizeof(float));
    for (int64_t i = rest; i < PICK_PAGE; i++) copy[i] = -INFINITY;
    pages.at[last] = copy;
}

// A score that may be written.
static inline float* own_score(const Pages& pages, int64_t token_id) {
    int64_t page = token_id / PICK_PAGE;
    float* copy = pages.copies + page * PICK_PAGE;
    if (pages.at[page] != copy) {
        memcpy(copy, pages.at[page], PICK_PAGE * sizeof(float));
        pages.at[page] = copy;
    }
    return copy + token_id % PICK_PAGE;
}

static inline float penalize(const gs_pick_call* call, float score, float count) {
    // Products in double are exact; rounded at once, they cannot be merged with a difference into one operation.
    score = score < 0 ? (float)((double)score * call->repetition) : score / call->repetition;
    float often = (float)((double)call->frequency * count);
    score = score - (count > 0 ? call->presence : 0.0f);
    return score - often;
}

static void adjust(const gs_pick_call* call, int64_t row, const Pages& pages) {
    for (int64_t i = 0; i < call->n_biases; i++) *own_score(pages, call->bias_ids[i]) += call->biases[i];
    if (!call->history) return;
    const int64_t start = row * call->history->vocab_size, n = call->history->lengths[row];
    const int32_t* token_ids = call->history->token_ids + start;
    const float* counts = call->history->counts + start;
    for (int64_t i = 0; i < n; i++) {
        float* score = own_score(pages, token_ids[i]);
        *score = penalize(call, *score, counts[token_ids[i]]);
    }
}

// Find the best score of every page and return that of the row; NaN where there is one.
static float find_tops(const Pages& pages) {
    const vf none = vset(-INFINITY);
    uint32_t numbers = ALL_LANES;
    float best = -INFINITY;
    for (int64_t page = 0; page < pages.n; page++) {
        const float* scores = pages.at[page];
        vf top = none;
        for (int64_t i = 0; i < PICK_PAGE; i += W) {
            vf x = vload(scores + i);
            numbers &= lanes_at_least(x, none);
            top = vmax(top, x);
        }
        float highest = hmax(top);
        pages.tops[page] = highest;
        best = highest > best ? highest : best;
    }
    return numbers == ALL_LANES ? best : NAN;
}

static int64_t first_nan(const Pages& pages) {
    for (int64_t id = 0;; id++)
        if (pages.at[id / PICK_PAGE][id % PICK_PAGE] != pages.at[id / PICK_PAGE][id % PICK_PAGE]) return id;
}

static int64_t first_best(const Pages& pages, float best) {
    int64_t id = 0;
    while (pages.tops[id / PICK_PAGE] != best) id += PICK_PAGE;
    while (pages.at[id / PICK_PAGE][id % PICK_PAGE] != best) id++;
    return id;
}

static int64_t pick_one(const gs_pick_call* call, int64_t row, const Pages& pages) {
    lay_out(call->logits + row * call->row_stride, call->vocab_size, pages);
    adjust(call, row, pages);
    Cut cut = {find_tops(pages), call->temperature, LEAST_FINITE, call->lowest};
    if (cut.best != cut.best) return first_nan(pages);
    int64_t greedy = first_best(pages, cut.best);
    if (call->temperature == 0.0f || cut.best == INFINITY || cut.best == -INFINITY) return greedy;
    int64_t n_listed = -1;
    if (call->top_k < call->vocab_size) n_listed = cut_to_best(pages, call->top_k, &cut);
    if (call->top_p < 1.0) cut_to_nucleus(pages, call->top_p, n_listed, &cut);
    return draw(pages, cut, (uint64_t)call->streams[row], (uint64_t)call->positions[row], greedy);
}

static void pick(const gs_pick_call* call) {
    const int64_t n_pages = (call->vocab_size + PICK_PAGE - 1) / PICK_PAGE, n_strips = call->n_strips;
    share_out(n_strips, 1, [&](int64_t begin, int64_t end, int32_t) {
        for (int64_t strip = begin; strip < end; strip++) {
            Pages pages = pages_in((char*)call->scratch + strip * n_pages * GS_PICK_SCRATCH, n_pages);
            int64_t stop = call->n_rows * (strip + 1) / n_strips;
            for (int64_t row = call->n_rows * strip / n_strips; row < stop; row++)
                call->chosen[row] = pick_one(call, row, pages);
        }
    });
}

static void record_tokens(const gs_history* history, const int64_t* token_ids) {
    for (int64_t row = 0; row < history->n_rows; row++) {
        int64_t start = row * history->vocab_size, at = start + token_ids[row];
        history->counts[at] += 1.0f;
        if (history->seen[at]) continue;
        history->seen[at] = 1;
        history->token_ids[start + history->lengths[row]++] = (int32_t)token_ids[row];
    }
}
