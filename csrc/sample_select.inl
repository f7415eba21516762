// The edges of top_k and top_p without a sort. Included by sample.inl.

// A row of scores and room to work in.
struct Pages {
    int64_t* weights;  // what the keys weigh
    const float** at;  // where each page lies
    float* tops;       // the best score of each
    float* copies;     // of pages, each in its place
    float* list;       // scores taken from all pages
    int32_t* keys;     // of scores or values
    int64_t n;
};

static Pages pages_in(char* scratch, int64_t n) {
    Pages pages = {};
    pages.n = n;
    pages.weights = (int64_t*)scratch;
    pages.at = (const float**)(pages.weights + n * PICK_PAGE);
    pages.copies = (float*)(pages.at + n);
    pages.list = pages.copies + n * PICK_PAGE;
    pages.keys = (int32_t*)(pages.list + n * PICK_PAGE);
    pages.tops = (float*)(pages.keys + n * PICK_PAGE);
    return pages;
}

// Which tokens survive: score >= edge and value_of(score) >= floor.
struct Cut {
    float best, temperature, edge, floor;
    float value_of(float score) const { return (score - best) / temperature; }
    vf values_of(vf score) const { return (score - vset(best)) / vset(temperature); }
};

static void find_ends(const int32_t* keys, int64_t n, int32_t* lowest, int32_t* highest) {
    int32_t low = keys[0], high = keys[0];
    for (int64_t i = 1; i < n; i++) {
        low = keys[i] < low ? keys[i] : low;
        high = keys[i] > high ? keys[i] : high;
    }
    *lowest = low;
    *highest = high;
}

static int64_t weight_above(const int32_t* keys, const int64_t* weights, int64_t n, int32_t pivot) {
    int64_t sum = 0;
    for (int64_t i = 0; i < n; i++) sum += keys[i] >= pivot ? weights[i] : 0;
    return sum;
}

// Keep the keys on one side of the pivot; return how many these are.
static int64_t keep_side(int32_t* keys, int64_t* weights, int64_t n, int32_t pivot, bool is_above) {
    int64_t n_kept = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t key = keys[i];
        keys[n_kept] = key;
        weights[n_kept] = weights[i];
        n_kept += (key >= pivot) == is_above;
    }
    return n_kept;
}

static inline int32_t middle_of(int32_t a, int32_t b, int32_t c) {
    int32_t low = a < b ? a : b, high = a < b ? b : a;
    return c < low ? low : c > high ? high : c;
}

// The largest key such that those of at least it weigh `needed` (1 up to the weight of all). The lists are used up.
static int32_t edge_of(int32_t* keys, int64_t* weights, int64_t n, int64_t needed) {
    for (bool takes_middle = false;; takes_middle = !takes_middle) {
        int32_t lowest, highest;
        find_ends(keys, n, &lowest, &highest);
        if (lowest == highest) return lowest;
        // A key of the list halves most lists; halving the range in turn ends after 32 rounds whatever the list.
        int32_t pivot = takes_middle ? (int32_t)(((int64_t)lowest + highest) >> 1)
                                     : middle_of(keys[0], keys[n / 2], keys[n - 1]);
        pivot += pivot == lowest;
        int64_t above = weight_above(keys, weights, n, pivot);
        n = keep_side(keys, weights, n, pivot, above >= needed);
        if (above < needed) needed -= above;
    }
}

// The k-th largest of some scores.
static float kth_largest(const Pages& pages, const float* scores, int64_t n, int64_t k) {
    for (int64_t i = 0; i < n; i++) {
        pages.keys[i] = key_of(scores[i]);
        pages.weights[i] = 1;
    }
    return number_of(edge_of(pages.keys, pages.weights, n, k));
}

// List all scores of at least `edge`; return how many these are.
static int64_t list_scores(const Pages& pages, float edge) {
    int64_t n = 0;
    for (int64_t page = 0; page < pages.n; page++) {
        if (pages.tops[page] < edge) continue;
        for (int64_t i = 0; i < PICK_PAGE; i += W) {
            const float* scores = pages.at[page] + i;
            for (uint32_t lanes = lanes_at_least(vload(scores), vset(edge)); lanes; lanes &= lanes - 1)
                pages.list[n++] = scores[__builtin_ctz(lanes)];
        }
    }
    return n;
}

// A number that the `n_tops` best pages reach, so that at least as many scores do.
static inline float reached_by(const Pages& pages, int64_t n_tops) {
    if (n_tops > pages.n) return LEAST_FINITE;
    float edge = kth_largest(pages, pages.tops, pages.n, n_tops);
    return edge > LEAST_FINITE ? edge : LEAST_FINITE;
}

// Set the edge to the k-th best score; return how many scores of at least it are listed now.
static int64_t cut_to_best(const Pages& pages, int64_t k, Cut* cut) {
    cut->edge = reached_by(pages, k);
    int64_t n = list_scores(pages, cut->edge), n_kept = 0;
    if (n <= k) return n;
    cut->edge = kth_largest(pages, pages.list, n, k);
    for (int64_t i = 0; i < n; i++) {
        pages.list[n_kept] = pages.list[i];
        n_kept += pages.list[i] >= cut->edge;
    }
    return n_kept;
}

// Turn scores into keys of their values and weights of their probabilities; return the sum of these.
static int64_t weigh(const Pages& pages, const float* scores, int64_t n, const Cut& cut) {
    int64_t sum = 0;
    for (int64_t i = 0; i < n; i++) {
        float value = cut.value_of(scores[i]);
        int64_t share = share_of(value);
        pages.keys[i] = key_of(value);
        pages.weights[i] = share;
        sum += share;
    }
    return sum;
}

// Raise the floor to the value of the last token among the best that sum to top_p.
static void cut_to_nucleus(const Pages& pages, double top_p, int64_t n_listed, Cut* cut) {
    int64_t total = 0, n = n_listed;
    if (n_listed >= 0)
        total = weigh(pages, pages.list, n, *cut);
    else
        for (int64_t page = 0; page < pages.n; page++)
            if (cut->value_of(pages.tops[page]) > -30.0f) total += weigh(pages, pages.at[page], PICK_PAGE, *cut);
    int64_t needed = (int64_t)ceil((double)total * top_p);
    // Without a list: the scores of a few pages often hold the nucleus, and of four times as many if not.
    for (int64_t n_tops = 16 + pages.n / 64; n_listed < 0; n_tops *= 4) {
        float edge = reached_by(pages, n_tops);
        n = list_scores(pages, edge);
        if (weigh(pages, pages.list, n, *cut) >= needed) break;
    }
    float floor = number_of(edge_of(pages.keys, pages.weights, n, needed));
    cut->floor = floor > cut->floor ? floor : cut->floor;
}
