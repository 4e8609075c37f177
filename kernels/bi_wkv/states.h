/* Running sums in double precision with a log scale of their own, and the scan over the chunks of bi_wkv.c, which includes this file. */

typedef struct {
    vd scale, den, num;
} Running; /* exp(scale) (den, num), with no center */

static Running empty(void) { return (Running){v_set_double(LOWEST), v_set_double(0.0), v_set_double(0.0)}; }

/* A running sum comes `decay` further and meets another: both are brought to the larger log scale. */
static Running join(Running sum, vd decay, Running own) {
    vd moved = sum.scale - decay, gap = moved - own.scale, less = v_exp_double(v_select_double(gap < 0.0, gap, -gap));
    vl sum_leads = gap >= 0.0;
    vd one = v_set_double(1.0), keep = v_select_double(sum_leads, one, less), take = v_select_double(sum_leads, less, one);
    return (Running){v_max_double(moved, own.scale), sum.den * keep + own.den * take, sum.num * keep + own.num * take};
}

static vd get_double(const float *from) { return v_widen(get(from)); }

/* A chunk's sums of weights and of weights times (value - center), without the center. */
static Running get_sum(const Problem *p, int64_t chunk, int64_t lane, int field) {
    vd den = get_double(state_of(p, chunk, lane, field)), num = get_double(state_of(p, chunk, lane, field + 1));
    return (Running){get_double(state_of(p, chunk, lane, SCALE)), den, num + get_double(state_of(p, chunk, lane, CENTER)) * den};
}

/* Stores what enters a chunk relative to exp(scale). */
static void put_incoming(const Problem *p, int64_t chunk, int64_t lane, int field, Running sum, vd scale) {
    vf factor = v_exp(v_narrow(sum.scale - scale));
    put_pair(p, chunk, lane, field, (Pair){v_narrow(sum.den) * factor, v_narrow(sum.num) * factor});
}

/* The scan of the sums over the chunks of one batch element, one vector of channels. A chunk gets its final SCALE, the largest log-weight
 * that reaches it, its final CENTER, the mean of all values as the chunk weights them, and what enters it from both sides. */
static void join_sums(const Problem *p, int64_t batch, int64_t lane) {
    int64_t first = batch * p->chunks;
    vd decay = get_double(p->decay + lane);
    Running sum = empty();
    for (int64_t j = first; j < first + p->chunks; j++) {
        memcpy(p->left + (3 * j) * p->width + lane, &sum.scale, sizeof sum.scale);
        memcpy(p->left + (3 * j + 1) * p->width + lane, &sum.den, sizeof sum.den);
        memcpy(p->left + (3 * j + 2) * p->width + lane, &sum.num, sizeof sum.num);
        sum = join(sum, decay, get_sum(p, j, lane, LEFT_DEN));
    }
    sum = empty();
    for (int64_t j = first + p->chunks - 1; j >= first; j--) {
        Running left, right = sum, own = get_sum(p, j, lane, RIGHT_DEN);
        memcpy(&left.scale, p->left + (3 * j) * p->width + lane, sizeof left.scale);
        memcpy(&left.den, p->left + (3 * j + 1) * p->width + lane, sizeof left.den);
        memcpy(&left.num, p->left + (3 * j + 2) * p->width + lane, sizeof left.num);
        sum = join(right, decay, own);
        Running all = join(left, v_set_double(0.0), sum);
        vd scale = v_widen(v_narrow(v_max_double(v_max_double(left.scale, right.scale), own.scale))); /* the kernels see it rounded */
        vd center = v_widen(finite_or_zero(v_narrow(all.num / all.den)));
        left.num -= center * left.den;
        right.num -= center * right.den;
        put(state_of(p, j, lane, SCALE), v_narrow(scale));
        put(state_of(p, j, lane, CENTER), v_narrow(center));
        put_incoming(p, j, lane, LEFT_DEN, left, scale);
        put_incoming(p, j, lane, RIGHT_DEN, right, scale);
    }
}

/* The same scan for the sums of the adjoints (-r (y - center), r), whose scale in every chunk is -SCALE. */
static void join_adjoints(const Problem *p, int64_t batch, int64_t lane) {
    int64_t first = batch * p->chunks, last = first + p->chunks - 1;
    vd decay = get_double(p->decay + lane);
    for (int field = GRAD_LEFT_DEN; field <= GRAD_RIGHT_DEN; field += 2) {
        Running sum = empty();
        for (int64_t n = 0; n < p->chunks; n++) {
            int64_t j = field == GRAD_LEFT_DEN ? first + n : last - n;
            vd scale = -get_double(state_of(p, j, lane, SCALE)), center = get_double(state_of(p, j, lane, CENTER));
            vd den = get_double(state_of(p, j, lane, field)), num = get_double(state_of(p, j, lane, field + 1));
            put_incoming(p, j, lane, field, (Running){sum.scale, sum.den + center * sum.num, sum.num}, scale);
            sum = join(sum, decay, (Running){scale, den - center * num, num});
        }
    }
}
