/* Bi-WKV for any w, u and k: one log scale per token and direction in double precision, so that every factor is <= 1. Included by bi_wkv.c
 * for the channels that its chunks are not safe for; LANES of them are gathered at a time. Several times slower, linear in T too. */

typedef struct {
    vd *scale, *den, *num;
} Column; /* a running sum at every token */

typedef struct {
    const Problem *p;
    const int64_t *channels; /* of the lanes; the last one is repeated in lanes that are not used */
    int64_t batch, used;
    vd w, u;
    Column suffix, grad_suffix;
    vd *top, *r, *y; /* log scale of the denominator, gy / denominator, result */
} Group;

static vd gather(const Group *g, const Rows *x, int64_t token) {
    const char *from = x->data + g->batch * x->batch + token * x->row;
    float single[LANES];
    uint16_t half[LANES];
    if (x->type == FLOAT32) {
        for (int i = 0; i < LANES; i++) single[i] = ((const float *)from)[g->channels[i]];
        return v_widen(v_load(single, FLOAT32));
    }
    for (int i = 0; i < LANES; i++) half[i] = ((const uint16_t *)from)[g->channels[i]];
    return v_widen(v_load(half, x->type));
}

static void scatter(const Group *g, const Rows *x, int64_t token, vd values) {
    char *to = x->data + g->batch * x->batch + token * x->row;
    uint16_t packed[2 * LANES];
    int64_t size = size_of(x->type);
    v_store(packed, v_narrow(values), x->type);
    for (int64_t i = 0; i < g->used; i++) memcpy(to + g->channels[i] * size, (char *)packed + i * size, size);
}

static void keep(const Column *column, int64_t token, Running sum) {
    column->scale[token] = sum.scale;
    column->den[token] = sum.den;
    column->num[token] = sum.num;
}

static Running kept(const Column *column, int64_t token) {
    return (Running){column->scale[token], column->den[token], column->num[token]};
}

/* The sum one token further, with a token of weight exp(key) and value v; a masked token (key -inf) has none. */
static Running pass(Running sum, vd w, vd key, vd v) {
    vl masked = key <= LOWEST;
    vd zero = v_set_double(0.0);
    vd scale = v_select_double(masked, v_set_double(LOWEST), key), one = v_select_double(masked, zero, v_set_double(1.0));
    return join(sum, w, (Running){scale, one, v_select_double(masked, zero, v)});
}

/* w, limited to the spread of a channel's keys: more decay or growth changes no weight, but would drown the keys in rounding. */
static vd limited(const Group *g, vd w) {
    vd spread = v_set_double(0.0);
    for (int64_t t = 0; t < g->p->tokens; t++) {
        vd key = gather(g, &g->p->k, t), size = v_select_double(key < 0.0, -key, key);
        spread = v_max_double(v_select_double(key == -__builtin_inf(), spread, size), spread);
    }
    spread = 2.0 * spread + 1000.0;
    w = v_select_double(w > spread, spread, w);
    return v_select_double(w < -spread, -spread, w);
}

static void fill_suffix(const Group *g) {
    Running sum = empty();
    for (int64_t t = g->p->tokens - 1; t >= 0; t--) {
        keep(&g->suffix, t, sum);
        sum = pass(sum, g->w, gather(g, &g->p->k, t), gather(g, &g->p->v, t));
    }
}

/* y of one token, whose own term is exp(u + key) (1, v); *den is relative to exp(*top). */
static vd result(Running left, Running right, vd own_scale, vd v, vd *top, vd *den) {
    *top = v_max_double(own_scale, v_max_double(left.scale, right.scale));
    vd l = v_exp_double(left.scale - *top), r = v_exp_double(right.scale - *top), o = v_exp_double(own_scale - *top);
    *den = l * left.den + r * right.den + o;
    return (l * left.num + r * right.num + o * v) / *den;
}

static void tokens_forward(const Group *g) {
    Running sum = empty();
    fill_suffix(g);
    for (int64_t t = 0; t < g->p->tokens; t++) {
        vd key = gather(g, &g->p->k, t), v = gather(g, &g->p->v, t), top, den;
        scatter(g, &g->p->y, t, result(sum, kept(&g->suffix, t), g->u + key, v, &top, &den));
        sum = pass(sum, g->w, key, v);
    }
}

/* Every sum is paired with its adjoint before it is rescaled, so that no factor exceeds 1. Writes gw and gu of this batch element. */
static void tokens_backward(const Group *g, double *gw, double *gu) {
    Running sum = empty(), grads = empty();
    vd sum_w = v_set_double(0.0), sum_u = sum_w;
    fill_suffix(g);
    for (int64_t t = 0; t < g->p->tokens; t++) {
        vd key = gather(g, &g->p->k, t), v = gather(g, &g->p->v, t), den;
        g->y[t] = result(sum, kept(&g->suffix, t), g->u + key, v, &g->top[t], &den);
        g->r[t] = gather(g, &g->p->gy, t) / den;
        sum = pass(sum, g->w, key, v);
    }
    for (int64_t t = g->p->tokens - 1; t >= 0; t--) {
        keep(&g->grad_suffix, t, grads);
        grads = join(grads, g->w, (Running){-g->top[t], -g->r[t] * g->y[t], g->r[t]});
    }
    sum = grads = empty();
    for (int64_t t = 0; t < g->p->tokens; t++) {
        vd key = gather(g, &g->p->k, t), v = gather(g, &g->p->v, t), r = g->r[t], y = g->y[t];
        Running suffix = kept(&g->suffix, t), grad_suffix = kept(&g->grad_suffix, t);
        vd own = v_exp_double(g->u + key - g->top[t]);
        vd left = v_exp_double(key + grads.scale), right = v_exp_double(key + grad_suffix.scale);
        vd num = left * grads.num + right * grad_suffix.num + own * r;
        vd den = left * grads.den + right * grad_suffix.den - own * r * y;
        scatter(g, &g->p->gv, t, num);
        scatter(g, &g->p->gk, t, num * v + den);
        sum_w -= v_exp_double(sum.scale + grad_suffix.scale - g->w) * (sum.den * grad_suffix.den + sum.num * grad_suffix.num);
        sum_w -= v_exp_double(suffix.scale + grads.scale - g->w) * (suffix.den * grads.den + suffix.num * grads.num);
        sum_u += own * r * (v - y);
        sum = pass(sum, g->w, key, v);
        grads = join(grads, g->w, (Running){-g->top[t], -r * y, r});
    }
    memcpy(gw, &sum_w, g->used * sizeof *gw);
    memcpy(gu, &sum_u, g->used * sizeof *gu);
}

/* One group of channels of one batch element; returns 1 where memory is short. */
static int tokens_group(Group *g, const float *w, const float *u, double *gw, double *gu) {
    int64_t tokens = g->p->tokens;
    vd *memory = allocate((gw ? 9 : 3) * tokens * sizeof(vd));
    if (!memory) return 1;
    double lanes_w[LANES], lanes_u[LANES];
    for (int i = 0; i < LANES; i++) {
        lanes_w[i] = w[g->channels[i]];
        lanes_u[i] = u[g->channels[i]];
    }
    memcpy(&g->w, lanes_w, sizeof g->w);
    memcpy(&g->u, lanes_u, sizeof g->u);
    g->w = limited(g, g->w);
    g->suffix = (Column){memory, memory + tokens, memory + 2 * tokens};
    if (gw) {
        g->grad_suffix = (Column){memory + 3 * tokens, memory + 4 * tokens, memory + 5 * tokens};
        g->top = memory + 6 * tokens;
        g->r = memory + 7 * tokens;
        g->y = memory + 8 * tokens;
        tokens_backward(g, gw, gu);
    } else {
        tokens_forward(g);
    }
    free(memory);
    return 0;
}

/* Overwrites y, or gk, gv, gw and gu, of `count` channels. Returns 1 where memory is short. */
static int tokens(const Problem *p, const float *w, const float *u, float *gw, float *gu, const int64_t *channels, int64_t count,
                  int threads) {
    int64_t groups = (count + LANES - 1) / LANES, size = groups * LANES;
    double *shares = gw ? allocate(2 * p->batches * size * sizeof(double)) : NULL;
    int failed = gw && !shares;
    if (!failed) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) reduction(| : failed)
        for (int64_t i = 0; i < p->batches * groups; i++) {
            int64_t lanes[LANES], first = i % groups * LANES, used = count - first < LANES ? count - first : LANES;
            for (int j = 0; j < LANES; j++) lanes[j] = channels[first + (j < used ? j : used - 1)];
            Group g = {.p = p, .channels = lanes, .batch = i / groups, .used = used};
            double *share = gw ? shares + g.batch * 2 * size + first : NULL;
            failed |= tokens_group(&g, w, u, share, gw ? share + size : NULL);
        }
        for (int64_t j = 0; gw && !failed && j < count; j++) {
            double sum_w = 0.0, sum_u = 0.0;
            for (int64_t b = 0; b < p->batches; b++) {
                sum_w += shares[b * 2 * size + j];
                sum_u += shares[b * 2 * size + size + j];
            }
            gw[channels[j]] = (float)sum_w;
            gu[channels[j]] = (float)sum_u;
        }
    }
    free(shares);
    return failed;
}
