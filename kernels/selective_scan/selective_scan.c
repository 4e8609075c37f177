/* Selective scan in C: channels on vector lanes, all states of a block of LANES channels at once, one step after the other.
 *
 * Steps are cut into tiles of STEPS, so that inputs, usually contiguous in time, are turned into vectors of channels in the L1 cache. B and
 * C, which all channels of a group share, are turned once into rows of N numbers per step. The recurrence itself needs no scan over
 * tiles: blocks of channels are enough work for the threads of a CPU. The backward (backward.h) keeps the states that enter each tile,
 * goes through the tiles from the last to the first, and recomputes the states inside. No result depends on the number of threads. */

#include <math.h>

#include "../c_vector.h"

#define STEPS 32

typedef struct {
    char *data;
    int64_t batch, channel, step; /* strides in bytes; channels or steps are contiguous */
    int type;
} Tokens; /* (B, D, L) */

typedef struct {
    char *data;
    int64_t batch, group, state, step; /* strides in bytes */
    int type;
} Weights; /* (B, G, N, L) */

typedef struct {
    int64_t batches, channels, steps, states, groups, per_group, blocks_per_group, tiles;
    int softplus;
    const float *A, *D, *bias; /* (D, N), (D,), (D,); D and bias may be NULL */
    Tokens u, delta, z, y;     /* z.data may be NULL; in the backward y is the gradient of y */
    Tokens gu, gdelta, gz;
    Weights B, C, gB, gC;
    float *last;        /* (B, D, N): last state, or its gradient */
    float *rows_B, *rows_C; /* (B, G, L, N) */
    float *gA, *gD, *gbias; /* (B, D, N), (B, D), (B, D): shares of the batch elements */
    float *share_B, *share_C; /* (parts, B, G, L, N): shares of parts of a group's channels */
    int64_t parts;
} Problem;

/* LANES channels of one group of one batch element. */
typedef struct {
    const Problem *p;
    int64_t batch, group, channel, lanes; /* first channel, number of channels */
    int any_sign;                         /* whether dt A can be positive */
    vf D, bias;
    vf *A, *A2; /* (N,): A, and A / ln 2 */
} Block;

/* ------------------------------------------------------------------------------------------------------------------ tiles of (B, D, L) */

static vf load_lanes(const char *from, int type, int64_t lanes) {
    return lanes == LANES ? v_load(from, type) : v_load_part(from, type, lanes, 0.0f);
}

/* Steps from `step` on, at most STEPS; lanes without a channel are 0. */
static void load_tile(vf *tile, const Tokens *x, const Block *b, int64_t step, int64_t count) {
    const char *from = x->data + b->batch * x->batch + b->channel * x->channel + step * x->step;
    int64_t size = size_of(x->type);
    if (x->channel == size) {
        for (int64_t t = 0; t < count; t++) tile[t] = load_lanes(from + t * x->step, x->type, b->lanes);
        return;
    }
    float line[STEPS + LANES], *single = (float *)tile;
    if (b->lanes < LANES) memset(tile, 0, count * sizeof *tile);
    for (int64_t i = 0; i < b->lanes; i++, from += x->channel) {
        const float *numbers = line;
        if (x->type == FLOAT32)
            numbers = (const float *)from;
        else
            for (int64_t t = 0; t < count; t += LANES) {
                int64_t left = count - t;
                v_store(line + t, load_lanes(from + t * size, x->type, left < LANES ? left : LANES), FLOAT32);
            }
        for (int64_t t = 0; t < count; t++) single[t * LANES + i] = numbers[t];
    }
}

static void store_tile(const vf *tile, const Tokens *x, const Block *b, int64_t step, int64_t count) {
    char *to = x->data + b->batch * x->batch + b->channel * x->channel + step * x->step;
    const float *single = (const float *)tile;
    float line[STEPS + LANES];
    int64_t size = size_of(x->type);
    for (int64_t i = 0; i < b->lanes; i++, to += x->channel) {
        float *numbers = x->type == FLOAT32 ? (float *)to : line;
        for (int64_t t = 0; t < count; t++) numbers[t] = single[t * LANES + i];
        for (int64_t t = 0; x->type != FLOAT32 && t < count; t += LANES) {
            vf part = v_load(line + t, FLOAT32);
            if (count - t < LANES)
                v_store_part(to + t * size, part, x->type, count - t);
            else
                v_store(to + t * size, part, x->type);
        }
    }
}

/* (D,) or a column of (D, N) on the lanes. */
static vf load_parameter(const float *x, const Block *b, int64_t stride) {
    float single[LANES] = {0};
    for (int64_t i = 0; i < b->lanes; i++) single[i] = x[(b->channel + i) * stride];
    return v_load(single, FLOAT32);
}

static void store_parameter(float *x, const Block *b, int64_t stride, vf values) {
    float single[LANES];
    v_store(single, values, FLOAT32);
    for (int64_t i = 0; i < b->lanes; i++) x[(b->batch * b->p->channels + b->channel + i) * stride] = single[i];
}

/* ------------------------------------------------------------------------------------------------------------------ rows of B and C */

static float read_one(const char *from, int type) {
    float x;
    uint16_t half[LANES] = {0};
    if (type == FLOAT32) {
        memcpy(&x, from, sizeof x);
        return x;
    }
    memcpy(half, from, sizeof *half);
    return v_load(half, type)[0];
}

/* (B, G, N, L) -> (B, G, L, N), in float32. */
static void turn_rows(const Problem *p, const Weights *x, float *rows, int64_t unit) {
    int64_t step = unit % p->tiles * STEPS, of = unit / p->tiles, end = step + STEPS < p->steps ? step + STEPS : p->steps;
    const char *from = x->data + of / p->groups * x->batch + of % p->groups * x->group;
    float *to = rows + of * p->steps * p->states;
    for (int64_t n = 0; n < p->states; n++)
        for (int64_t t = step; t < end; t++) to[t * p->states + n] = read_one(from + n * x->state + t * x->step, x->type);
}

/* The way back: sums the shares of all parts, (parts, B, G, L, N) -> (B, G, N, L). */
static void sum_shares(const Problem *p, const float *shares, const Weights *x, int64_t unit) {
    int64_t step = unit % p->tiles * STEPS, of = unit / p->tiles, end = step + STEPS < p->steps ? step + STEPS : p->steps;
    int64_t size = p->batches * p->groups * p->steps * p->states;
    char *to = x->data + of / p->groups * x->batch + of % p->groups * x->group;
    for (int64_t n = 0; n < p->states; n++)
        for (int64_t t = step; t < end; t++) {
            const float *from = shares + (of * p->steps + t) * p->states + n;
            float sum = 0.0f;
            for (int64_t i = 0; i < p->parts; i++) sum += from[i * size];
            v_store_part(to + n * x->state + t * x->step, v_set(sum), x->type, 1);
        }
}

/* ------------------------------------------------------------------------------------------------------------------ forward */

static vf step_size(const Block *b, vf delta) {
    delta += b->bias;
    return b->p->softplus ? v_select(delta > 20.0f, delta, v_softplus(delta)) : delta;
}

static vf decay_of(vf step, vf A, vf A2, int any_sign) { return any_sign ? v_exp(step * A) : v_exp2_flush(step * A2); }

/* The rows of B or C from `step` on. */
static const float *rows_of(const Block *b, const float *rows, int64_t step) {
    return rows + ((b->batch * b->p->groups + b->group) * b->p->steps + step) * b->p->states;
}

/* One step of all states; returns C . h. Inline, so that N = 16 is a constant of its own copy. */
#define INLINE static inline __attribute__((always_inline))

INLINE vf advance(const Block *b, vf *h, vf step, vf x, const float *B, const float *C, int64_t states, int any_sign) {
    vf y = v_set(0.0f);
    for (int64_t n = 0; n < states; n++) {
        h[n] = h[n] * decay_of(step, b->A[n], b->A2[n], any_sign) + x * B[n];
        y += h[n] * C[n];
    }
    return y;
}

INLINE void advance_tile(const Block *b, vf *h, const vf *steps, const vf *u, vf *y, int64_t first, int64_t count, int64_t states,
                         int any_sign) {
    const float *B = rows_of(b, b->p->rows_B, first), *C = rows_of(b, b->p->rows_C, first);
    for (int64_t t = 0; t < count; t++) y[t] = advance(b, h, steps[t], steps[t] * u[t], B + t * states, C + t * states, states, any_sign);
}

static void forward_block(const Block *b, vf *h) {
    const Problem *p = b->p;
    vf u[STEPS], steps[STEPS], z[STEPS], y[STEPS];
    memset(h, 0, p->states * sizeof *h);
    for (int64_t first = 0; first < p->steps; first += STEPS) {
        int64_t count = p->steps - first < STEPS ? p->steps - first : STEPS;
        load_tile(u, &p->u, b, first, count);
        load_tile(steps, &p->delta, b, first, count);
        for (int64_t t = 0; t < count; t++) steps[t] = step_size(b, steps[t]);
        if (b->any_sign)
            advance_tile(b, h, steps, u, y, first, count, p->states, 1);
        else if (p->states == 16)
            advance_tile(b, h, steps, u, y, first, count, 16, 0);
        else
            advance_tile(b, h, steps, u, y, first, count, p->states, 0);
        for (int64_t t = 0; t < count; t++) y[t] += b->D * u[t];
        if (p->z.data) {
            load_tile(z, &p->z, b, first, count);
            for (int64_t t = 0; t < count; t++) y[t] *= z[t] * v_sigmoid(z[t]);
        }
        store_tile(y, &p->y, b, first, count);
    }
    for (int64_t n = 0; n < p->states; n++) store_parameter(p->last + n, b, p->states, h[n]);
}

/* ------------------------------------------------------------------------------------------------------------------ blocks and threads */

/* Block i of group g of batch element `batch`; `parameters` has room for 2 N vectors. */
static Block block_at(const Problem *p, int64_t batch, int64_t group, int64_t i, vf *parameters) {
    Block b = {.p = p, .batch = batch, .group = group, .channel = group * p->per_group + i * LANES};
    int64_t left = p->per_group - i * LANES;
    b.lanes = left < LANES ? left : LANES;
    b.D = p->D ? load_parameter(p->D, &b, 1) : v_set(0.0f);
    b.bias = p->bias ? load_parameter(p->bias, &b, 1) : v_set(0.0f);
    b.A = parameters;
    b.A2 = parameters + p->states;
    b.any_sign = !p->softplus;
    for (int64_t n = 0; n < p->states; n++) {
        b.A[n] = load_parameter(p->A + n, &b, p->states);
        b.A2[n] = b.A[n] * 1.44269504088896341f;
        for (int i = 0; i < LANES; i++) b.any_sign |= b.A[n][i] > 0.0f;
    }
    return b;
}

#include "backward.h"

static int forward(const Problem *p, int threads) {
    int failed = 0;
    int64_t blocks = p->groups * p->blocks_per_group;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) reduction(| : failed)
    for (int64_t i = 0; i < p->batches * blocks; i++) {
        vf *memory = allocate(3 * p->states * sizeof(vf));
        if (memory) {
            Block b = block_at(p, i / blocks, i % blocks / p->blocks_per_group, i % p->blocks_per_group, memory);
            forward_block(&b, memory + 2 * p->states);
        }
        failed |= !memory;
        free(memory);
    }
    return failed;
}

static int run(Problem *p, int backward, int threads) {
    int64_t rows = p->batches * p->groups, size = rows * p->steps * p->states;
    p->rows_B = allocate((2 + (backward ? 2 * p->parts : 0)) * size * sizeof(float));
    if (!p->rows_B) return 1;
    p->rows_C = p->rows_B + size;
    p->share_B = p->rows_C + size;
    p->share_C = p->share_B + p->parts * size;
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads)
    for (int64_t i = 0; i < 2 * rows * p->tiles; i++) turn_rows(p, i % 2 ? &p->C : &p->B, i % 2 ? p->rows_C : p->rows_B, i / 2);
    int failed = backward ? backward_parts(p, threads) : forward(p, threads);
    if (backward && !failed) {
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads)
        for (int64_t i = 0; i < 2 * rows * p->tiles; i++) sum_shares(p, i % 2 ? p->share_C : p->share_B, i % 2 ? &p->gC : &p->gB, i / 2);
    }
    free(p->rows_B);
    return failed;
}

static Tokens tokens_at(const int64_t *a) { return (Tokens){(char *)a[0], a[1], a[2], a[3], (int)a[4]}; }

static Tokens fresh_tokens_at(const int64_t *a, int64_t batches) {
    if (a[0]) ask_for_huge_pages((void *)a[0], batches * a[1]);
    return tokens_at(a);
}

static Weights weights_at(const int64_t *a) { return (Weights){(char *)a[0], a[1], a[2], a[3], a[4], (int)a[5]}; }

/* The only entry. `a` is a table: B, D, L, N, G, threads, backward, softplus; addresses of A, D, bias, last state or its gradient (float32;
 * D and bias may be 0); address, strides of B, D, L in bytes and type of u, delta, z (address 0: none) and y or its gradient;
 * address, strides of B, G, N, L and type of B and C; backward: the same for the gradients of u, delta, z, B and C, and the addresses of
 * the shares of the gradients of A, D and bias. Returns 1 where memory is short. */
int linescan_selective_scan(const int64_t *a) {
    Problem p = {.batches = a[0], .channels = a[1], .steps = a[2], .states = a[3], .groups = a[4], .softplus = (int)a[7]};
    int backward = (int)a[6];
    p.per_group = p.channels / p.groups;
    p.blocks_per_group = (p.per_group + LANES - 1) / LANES;
    p.parts = p.blocks_per_group < PARTS ? p.blocks_per_group : PARTS;
    p.tiles = (p.steps + STEPS - 1) / STEPS;
    p.A = (const float *)a[8];
    p.D = (const float *)a[9];
    p.bias = (const float *)a[10];
    p.last = (float *)a[11];
    p.u = tokens_at(a + 12);
    p.delta = tokens_at(a + 17);
    p.z = tokens_at(a + 22);
    p.y = backward ? tokens_at(a + 27) : fresh_tokens_at(a + 27, p.batches);
    p.B = weights_at(a + 32);
    p.C = weights_at(a + 38);
    if (backward) {
        p.gu = fresh_tokens_at(a + 44, p.batches);
        p.gdelta = fresh_tokens_at(a + 49, p.batches);
        p.gz = fresh_tokens_at(a + 54, p.batches);
        p.gB = weights_at(a + 59);
        p.gC = weights_at(a + 65);
        p.gA = (float *)a[71];
        p.gD = (float *)a[72];
        p.gbias = (float *)a[73];
    }
    return run(&p, backward, (int)a[5]);
}
