/* Bi-WKV in C: the algebra of torch_chunked.py in two sweeps over the tokens, channels on vector lanes.
 *
 * Tokens are cut into chunks of ROWS. Sweep 1 sums every chunk in both directions relative to its largest key; a scan joins these sums to
 * what enters each chunk from its left and from its right; sweep 2 recomputes the chunk in the L1 cache and writes the result. The backward
 * has a third sweep, because the gradients need the same two scans of (-r y, r). Every chunk has one log scale, the largest log-weight that
 * reaches it, and one center, about the mean of what it sees, which is subtracted from all values: gradients of keys are differences from
 * the mean, and do not lose digits to a common offset. Scans over chunks keep log scales and sums in double precision, so that no rounded
 * decay is applied thousands of times.
 *
 * This is safe for |w| ROWS <= 30, |u| <= 30 and -w T <= 20. Channels beyond it take no part (w = u = 0 here); the caller gives them to
 * tokens.h, which overwrites what this file wrote for them. Channels never mix: they are lanes. No result depends on the number of
 * threads. */

#include <math.h>
#include <stdlib.h>

#include "../c_vector.h"

#define ROWS 32                /* tokens of a chunk */
#define PANEL 4                /* vectors of channels that are loaded together: rows of 256 bytes with AVX-512 */
#define WIDTH (PANEL * LANES)  /* channels of a panel */
#define LOWEST -1e30f          /* log scale of an empty sum: finite, so that the difference of two of them is not NaN */

/* What is kept of a chunk, a row of `width` channels each. Before `join` the sums are the chunk's own, after it those that enter it. */
enum { SCALE, CENTER, LEFT_DEN, LEFT_NUM, RIGHT_DEN, RIGHT_NUM, GRAD_LEFT_DEN, GRAD_LEFT_NUM, GRAD_RIGHT_DEN, GRAD_RIGHT_NUM, FIELDS };

typedef struct {
    char *data;
    int64_t batch, row; /* strides in bytes; channels are contiguous */
    int type;
} Rows;

typedef struct {
    int64_t batches, tokens, channels, chunks, panels, width;
    Rows k, v, gy, y, gk, gv;
    Rows r, ry;                    /* float32, between the second and third sweep of the backward: gy / den and its product with y */
    const float *decay, *lam, *eu; /* (width,): w ROWS, exp(-w), exp(u) */
    float *state;                  /* (batches, chunks, FIELDS or GRAD_LEFT_DEN, width) */
    double *left;                  /* (batches, chunks, 3, width): log scale and sums from the left, while chunks are joined */
    float *gw, *gu;                /* (batches, chunks, width) */
    int64_t fields;
} Problem;

typedef struct {
    vf den, num;
} Pair;

static Pair advance(Pair sum, vf lam, Pair x) { return (Pair){sum.den * lam + x.den, sum.num * lam + x.num}; }

static float *state_of(const Problem *p, int64_t chunk, int64_t lane, int field) {
    return p->state + (chunk * p->fields + field) * p->width + lane;
}

static vf get(const float *from) { return v_load(from, FLOAT32); }
static void put(float *to, vf x) { v_store(to, x, FLOAT32); }

static Pair get_pair(const Problem *p, int64_t chunk, int64_t lane, int field) {
    return (Pair){get(state_of(p, chunk, lane, field)), get(state_of(p, chunk, lane, field + 1))};
}

static void put_pair(const Problem *p, int64_t chunk, int64_t lane, int field, Pair x) {
    put(state_of(p, chunk, lane, field), x.den);
    put(state_of(p, chunk, lane, field + 1), x.num);
}

/* Tokens of a chunk from `token` on that exist. */
static int64_t rows_from(const Problem *p, int64_t token) { return p->tokens - token < ROWS ? p->tokens - token : ROWS; }

/* ROWS tokens of PANEL vectors; `fill` beyond the last token and the last channel. */
static void load_panel(vf tile[PANEL][ROWS], const Rows *x, int64_t batch, int64_t token, int64_t channel, const Problem *p, float fill) {
    const char *from = x->data + batch * x->batch + token * x->row + channel * size_of(x->type);
    int64_t rows = rows_from(p, token), step = LANES * size_of(x->type), left = p->channels - channel;
    if (left >= WIDTH && x->type == FLOAT32) {
        for (int64_t j = 0; j < rows; j++, from += x->row)
#pragma GCC unroll 4
            for (int64_t i = 0; i < PANEL; i++) tile[i][j] = v_load(from + i * step, FLOAT32);
    } else {
        for (int64_t j = 0; j < rows; j++, from += x->row)
            for (int64_t i = 0; i < PANEL; i++) {
                int64_t lanes = left - i * LANES;
                if (lanes >= LANES)
                    tile[i][j] = v_load(from + i * step, x->type);
                else
                    tile[i][j] = lanes > 0 ? v_load_part(from + i * step, x->type, lanes, fill) : v_set(fill);
            }
    }
    for (int64_t j = rows; j < ROWS; j++)
        for (int64_t i = 0; i < PANEL; i++) tile[i][j] = v_set(fill);
}

static void store_panel(const vf tile[PANEL][ROWS], const Rows *x, int64_t batch, int64_t token, int64_t channel, const Problem *p) {
    char *to = x->data + batch * x->batch + token * x->row + channel * size_of(x->type);
    int64_t rows = rows_from(p, token), step = LANES * size_of(x->type);
    for (int64_t j = 0; j < rows; j++, to += x->row)
        for (int64_t i = 0; i < PANEL; i++) {
            int64_t left = p->channels - channel - i * LANES;
            if (left >= LANES)
                v_store(to + i * step, tile[i][j], x->type);
            else if (left > 0)
                v_store_part(to + i * step, tile[i][j], x->type, left);
        }
}

/* Where the panel after this one begins. */
static const char *next_panel(const Problem *p, const Rows *x, int64_t chunk, int64_t channel) {
    if ((channel += WIDTH) >= p->channels) {
        channel = 0;
        chunk++;
    }
    return x->data + chunk / p->chunks * x->batch + chunk % p->chunks * ROWS * x->row + channel * size_of(x->type);
}

/* Memory is slower than the arithmetic unless it is asked in time: each step of a loop over a panel asks for a line of the next one. */
#define FETCH(NEXT, X, I, J) __builtin_prefetch((NEXT) + (J) * (X).row + (I) * LANES * size_of((X).type))

/* Sums of x_j over a chunk, as they leave it to its right and to its left. */
#define SUM_BOTH_WAYS(X, LAM, TO_RIGHT, TO_LEFT)                     \
    do {                                                             \
        Pair x_ = (X);                                               \
        TO_RIGHT = advance(TO_RIGHT, LAM, x_);                       \
        TO_LEFT.den += reach * x_.den;                               \
        TO_LEFT.num += reach * x_.num;                               \
        reach *= LAM;                                                \
    } while (0)

static vf finite_or_zero(vf x) { return v_select((x < __builtin_inff()) & (x > -__builtin_inff()), x, v_set(0.0f)); }

/* Sweep 1 on one chunk and panel: sums relative to the chunk's largest key and its mean value. */
static void sum_chunk(const Problem *p, int64_t chunk, int64_t channel) {
    vf keys[PANEL][ROWS], values[PANEL][ROWS];
    int64_t batch = chunk / p->chunks, token = chunk % p->chunks * ROWS;
    load_panel(keys, &p->k, batch, token, channel, p, -__builtin_inff());
    load_panel(values, &p->v, batch, token, channel, p, 0.0f);
    const char *next_k = next_panel(p, &p->k, chunk, channel), *next_v = next_panel(p, &p->v, chunk, channel);
    for (int64_t i = 0; i < PANEL; i++) {
        int64_t lane = channel + i * LANES;
        vf lam = get(p->lam + lane), scale = v_set(LOWEST), reach = v_set(1.0f);
        Pair sum = {v_set(1e-30f), v_set(0.0f)}, to_right = {v_set(0.0f), v_set(0.0f)}, to_left = to_right;
        for (int64_t j = 0; j < ROWS; j++) scale = v_max(keys[i][j], scale);
        for (int64_t j = 0; j < ROWS; j++) {
            FETCH(next_k, p->k, i, j);
            FETCH(next_v, p->v, i, j);
            keys[i][j] = v_exp_flush(keys[i][j] - scale);
            sum = (Pair){sum.den + keys[i][j], sum.num + keys[i][j] * values[i][j]};
        }
        vf center = finite_or_zero(sum.num / sum.den);
        for (int64_t j = 0; j < ROWS; j++)
            SUM_BOTH_WAYS(((Pair){keys[i][j], keys[i][j] * (values[i][j] - center)}), lam, to_right, to_left);
        put(state_of(p, chunk, lane, SCALE), scale);
        put(state_of(p, chunk, lane, CENTER), center);
        put_pair(p, chunk, lane, LEFT_DEN, to_right);
        put_pair(p, chunk, lane, RIGHT_DEN, to_left);
    }
}

#include "states.h"

/* Sweep 2 of the forward on one chunk and panel: y = (prefix + suffix + exp(u) x)_num / (...)_den. */
static void write_chunk(const Problem *p, int64_t chunk, int64_t channel) {
    vf keys[PANEL][ROWS], values[PANEL][ROWS];
    Pair rest[ROWS];
    int64_t batch = chunk / p->chunks, token = chunk % p->chunks * ROWS;
    load_panel(keys, &p->k, batch, token, channel, p, -__builtin_inff());
    load_panel(values, &p->v, batch, token, channel, p, 0.0f);
    const char *next_k = next_panel(p, &p->k, chunk, channel), *next_v = next_panel(p, &p->v, chunk, channel);
    for (int64_t i = 0; i < PANEL; i++) {
        int64_t lane = channel + i * LANES;
        vf lam = get(p->lam + lane), eu = get(p->eu + lane);
        vf scale = get(state_of(p, chunk, lane, SCALE)), center = get(state_of(p, chunk, lane, CENTER));
        Pair prefix = get_pair(p, chunk, lane, LEFT_DEN), suffix = get_pair(p, chunk, lane, RIGHT_DEN);
        for (int64_t j = ROWS - 1; j >= 0; j--) {
            FETCH(next_k, p->k, i, j);
            vf weight = v_exp_flush(keys[i][j] - scale);
            values[i][j] -= center;
            Pair x = {weight, weight * values[i][j]};
            rest[j] = (Pair){suffix.den + eu * x.den, suffix.num + eu * x.num};
            keys[i][j] = weight;
            suffix = advance(suffix, lam, x);
        }
        for (int64_t j = 0; j < ROWS; j++) {
            FETCH(next_v, p->v, i, j);
            Pair x = {keys[i][j], keys[i][j] * values[i][j]};
            values[i][j] = center + (prefix.num + rest[j].num) / (prefix.den + rest[j].den);
            prefix = advance(prefix, lam, x);
        }
    }
    store_panel(values, &p->y, batch, token, channel, p);
}

/* Sweep 2 of the backward: keeps r = gy / den and r y of every token, and their sums over the chunk in both directions. */
static void sum_chunk_of_gradients(const Problem *p, int64_t chunk, int64_t channel) {
    vf keys[PANEL][ROWS], values[PANEL][ROWS], grads[PANEL][ROWS];
    Pair rest[ROWS];
    int64_t batch = chunk / p->chunks, token = chunk % p->chunks * ROWS;
    load_panel(keys, &p->k, batch, token, channel, p, -__builtin_inff());
    load_panel(values, &p->v, batch, token, channel, p, 0.0f);
    load_panel(grads, &p->gy, batch, token, channel, p, 0.0f);
    const char *next_k = next_panel(p, &p->k, chunk, channel), *next_v = next_panel(p, &p->v, chunk, channel);
    const char *next_gy = next_panel(p, &p->gy, chunk, channel);
    int64_t rows = rows_from(p, token); /* the padding has no denominator */
    for (int64_t i = 0; i < PANEL; i++) {
        int64_t lane = channel + i * LANES;
        vf lam = get(p->lam + lane), eu = get(p->eu + lane), reach = v_set(1.0f);
        vf scale = get(state_of(p, chunk, lane, SCALE)), center = get(state_of(p, chunk, lane, CENTER));
        Pair prefix = get_pair(p, chunk, lane, LEFT_DEN), suffix = get_pair(p, chunk, lane, RIGHT_DEN);
        Pair to_right = {v_set(0.0f), v_set(0.0f)}, to_left = to_right;
        for (int64_t j = rows - 1; j >= 0; j--) {
            FETCH(next_k, p->k, i, j);
            vf weight = v_exp_flush(keys[i][j] - scale);
            values[i][j] -= center;
            Pair x = {weight, weight * values[i][j]};
            rest[j] = (Pair){suffix.den + eu * x.den, suffix.num + eu * x.num};
            keys[i][j] = weight;
            suffix = advance(suffix, lam, x);
        }
        for (int64_t j = 0; j < rows; j++) {
            FETCH(next_v, p->v, i, j);
            FETCH(next_gy, p->gy, i, j);
            Pair x = {keys[i][j], keys[i][j] * values[i][j]};
            vf inverse = 1.0f / (prefix.den + rest[j].den), r = grads[i][j] * inverse, ry = (prefix.num + rest[j].num) * inverse * r;
            prefix = advance(prefix, lam, x);
            SUM_BOTH_WAYS(((Pair){-ry, r}), lam, to_right, to_left);
            values[i][j] = ry;
            grads[i][j] = r;
        }
        for (int64_t j = rows; j < ROWS; j++) to_right = advance(to_right, lam, (Pair){v_set(0.0f), v_set(0.0f)});
        put_pair(p, chunk, lane, GRAD_LEFT_DEN, to_right);
        put_pair(p, chunk, lane, GRAD_RIGHT_DEN, to_left);
    }
    store_panel(grads, &p->r, batch, token, channel, p);
    store_panel(values, &p->ry, batch, token, channel, p);
}

/* Sweep 3 of the backward: gk, gv, and the chunk's share of gw and gu. */
static void write_chunk_of_gradients(const Problem *p, int64_t chunk, int64_t channel) {
    vf keys[PANEL][ROWS], values[PANEL][ROWS], r[PANEL][ROWS], ry[PANEL][ROWS];
    Pair after[ROWS], grad_after[ROWS];
    int64_t batch = chunk / p->chunks, token = chunk % p->chunks * ROWS;
    load_panel(keys, &p->k, batch, token, channel, p, -__builtin_inff());
    load_panel(values, &p->v, batch, token, channel, p, 0.0f);
    load_panel(r, &p->r, batch, token, channel, p, 0.0f);
    load_panel(ry, &p->ry, batch, token, channel, p, 0.0f);
    const char *next_k = next_panel(p, &p->k, chunk, channel), *next_v = next_panel(p, &p->v, chunk, channel);
    const char *next_r = next_panel(p, &p->r, chunk, channel), *next_ry = next_panel(p, &p->ry, chunk, channel);
    for (int64_t i = 0; i < PANEL; i++) {
        int64_t lane = channel + i * LANES;
        vf lam = get(p->lam + lane), eu = get(p->eu + lane), center = get(state_of(p, chunk, lane, CENTER));
        vf scale = get(state_of(p, chunk, lane, SCALE));
        vf gw = v_set(0.0f), gu = gw;
        Pair prefix = get_pair(p, chunk, lane, LEFT_DEN), suffix = get_pair(p, chunk, lane, RIGHT_DEN);
        Pair grad_prefix = get_pair(p, chunk, lane, GRAD_LEFT_DEN), grad_suffix = get_pair(p, chunk, lane, GRAD_RIGHT_DEN);
        for (int64_t j = ROWS - 1; j >= 0; j--) {
            FETCH(next_k, p->k, i, j);
            FETCH(next_r, p->r, i, j);
            vf weight = v_exp_flush(keys[i][j] - scale);
            after[j] = suffix;
            grad_after[j] = grad_suffix;
            values[i][j] -= center;
            suffix = advance(suffix, lam, (Pair){weight, weight * values[i][j]});
            grad_suffix = advance(grad_suffix, lam, (Pair){-ry[i][j], r[i][j]});
            keys[i][j] = weight;
        }
        for (int64_t j = 0; j < ROWS; j++) {
            FETCH(next_v, p->v, i, j);
            FETCH(next_ry, p->ry, i, j);
            Pair x = {keys[i][j], keys[i][j] * values[i][j]}, g = {-ry[i][j], r[i][j]};
            gw += grad_after[j].den * prefix.den + grad_after[j].num * prefix.num;
            gw += grad_prefix.den * after[j].den + grad_prefix.num * after[j].num;
            gu += g.den * x.den + g.num * x.num;
            vf den = grad_prefix.den + grad_after[j].den + eu * g.den, num = grad_prefix.num + grad_after[j].num + eu * g.num;
            prefix = advance(prefix, lam, x);
            grad_prefix = advance(grad_prefix, lam, g);
            keys[i][j] = x.den * (num * values[i][j] + den);
            values[i][j] = x.den * num;
        }
        put(p->gw + chunk * p->width + lane, -lam * gw);
        put(p->gu + chunk * p->width + lane, eu * gu);
    }
    store_panel(keys, &p->gk, batch, token, channel, p);
    store_panel(values, &p->gv, batch, token, channel, p);
}

typedef void Work(const Problem *, int64_t chunk, int64_t channel);

static void over_chunks(const Problem *p, Work *work, int threads) {
    int64_t units = p->batches * p->chunks * p->panels;
#pragma omp parallel for schedule(dynamic, 8) num_threads(threads)
    for (int64_t i = 0; i < units; i++) work(p, i / p->panels, i % p->panels * WIDTH);
}

static void over_lanes(const Problem *p, void (*scan)(const Problem *, int64_t batch, int64_t lane), int threads) {
    int64_t vectors = p->width / LANES, units = p->batches * vectors;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t i = 0; i < units; i++) scan(p, i / vectors, i % vectors * LANES);
}

/* out (channels,) = sums of x (rows, width), in double precision and in the order of the rows. */
static void sum_rows(const float *x, int64_t rows, const Problem *p, float *out) {
    for (int64_t lane = 0; lane < p->width; lane += LANES) {
        vd sum = v_set_double(0.0);
        for (int64_t i = 0; i < rows; i++) sum += v_widen(get(x + i * p->width + lane));
        int64_t left = p->channels - lane;
        if (left > 0) v_store_part(out + lane, v_narrow(sum), FLOAT32, left < LANES ? left : LANES);
    }
}

#include "tokens.h"

/* Padded parameters (decay, lam, eu: width numbers each) from w and u, and the channels that chunks are not safe for; returns how many. */
static int64_t prepare(const float *w, const float *u, const Problem *p, float *parameters, int64_t *unsafe) {
    int64_t found = 0;
    for (int64_t c = 0; c < p->width; c++) {
        int inside = c < p->channels;
        int safe = inside && fabsf(w[c]) * ROWS <= 30.0f && fabsf(u[c]) <= 30.0f && -(double)w[c] * p->tokens <= 20.0;
        if (inside && !safe) unsafe[found++] = c;
        parameters[c] = safe ? w[c] * ROWS : 0.0f;
        parameters[p->width + c] = safe ? (float)exp(-(double)w[c]) : 1.0f;
        parameters[2 * p->width + c] = safe ? expf(u[c]) : 1.0f;
    }
    return found;
}

static Rows rows_at(const int64_t *a) { return (Rows){(char *)a[0], a[1], a[2], (int)a[4]}; }

static Rows fresh_rows_at(const int64_t *a, int64_t batches) {
    ask_for_huge_pages((void *)a[0], batches * a[1]);
    return rows_at(a);
}

static int run(Problem *p, const float *w, const float *u, float *gw, float *gu, int backward, int threads) {
    int64_t chunks = p->batches * p->chunks, size = chunks * p->width, float_rows = chunks * (p->fields + 2 * backward) + 3;
    float *memory = allocate(3 * size * sizeof(double) + float_rows * p->width * sizeof(float));
    int64_t *unsafe = malloc(p->channels * sizeof(int64_t));
    int failed = !memory || !unsafe;
    if (!failed) {
        p->left = (double *)memory;
        p->state = (float *)(p->left + 3 * size);
        float *parameters = p->state + p->fields * size;
        p->gw = parameters + 3 * p->width;
        p->gu = p->gw + size;
        p->decay = parameters;
        p->lam = parameters + p->width;
        p->eu = parameters + 2 * p->width;
        int64_t count = prepare(w, u, p, parameters, unsafe);
        if (count < p->channels) {
            over_chunks(p, sum_chunk, threads);
            over_lanes(p, join_sums, threads);
            over_chunks(p, backward ? sum_chunk_of_gradients : write_chunk, threads);
            if (backward) {
                over_lanes(p, join_adjoints, threads);
                over_chunks(p, write_chunk_of_gradients, threads);
                sum_rows(p->gw, chunks, p, gw);
                sum_rows(p->gu, chunks, p, gu);
            }
        }
        if (count) failed = tokens(p, w, u, gw, gu, unsafe, count, threads);
    }
    free(unsafe);
    free(memory);
    return failed;
}

/* The only entry. `a` is a table: B, T, C, threads, backward; addresses of w and u (float32) and, backward, of gw and gu (float32); then
 * address, strides of B, T and C in bytes, and type of k, v, and of y or gy, gk, gv, r, ry. Returns 1 where memory is short. */
int linescan_bi_wkv(const int64_t *a) {
    int backward = (int)a[4];
    Problem p = {.batches = a[0], .tokens = a[1], .channels = a[2], .fields = backward ? FIELDS : GRAD_LEFT_DEN};
    p.chunks = (p.tokens + ROWS - 1) / ROWS;
    p.panels = (p.channels + WIDTH - 1) / WIDTH;
    p.width = p.panels * WIDTH;
    p.k = rows_at(a + 9);
    p.v = rows_at(a + 14);
    if (backward) {
        p.gy = rows_at(a + 19);
        p.gk = fresh_rows_at(a + 24, p.batches);
        p.gv = fresh_rows_at(a + 29, p.batches);
        p.r = fresh_rows_at(a + 34, p.batches);
        p.ry = fresh_rows_at(a + 39, p.batches);
    } else {
        p.y = fresh_rows_at(a + 19, p.batches);
    }
    return run(&p, (const float *)a[5], (const float *)a[6], (float *)a[7], (float *)a[8], backward, (int)a[3]);
}
