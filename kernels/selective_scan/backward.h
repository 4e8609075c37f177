/* The backward of selective_scan.c, which includes this file. With the state's gradient H_t (of h_t, from y_t and all later steps),
 *
 *     H_t = g_t C_t + exp(dt_{t+1} A) H_{t+1}        gB_t = sum_d H_t dt_t u_t     gC_t = sum_d g_t h_t     g_t: gradient before the gate
 *     E_t = H_t h_{t-1} exp(dt_t A)                  gA = sum_t E_t dt_t           g(dt_t) = sum_n E_t A + u_t sum_n H_t B_t
 *
 * The channels of a group are divided into PARTS, whose sums over channels (gB, gC) are kept apart and added in the end, in order. */

#define PARTS 8

typedef struct {
    vf *tile_states;     /* (tiles, N): states that enter each tile */
    vf *states, *decays; /* (STEPS, N): inside the tile: before each step, and its decays */
    vf *h, *H;           /* (N,) */
    vd *gA;              /* (N,) */
    vf *products;        /* (2, N rounded up to LANES): of one step, to be summed over lanes */
    int64_t padded;
} Scratch;

typedef struct {
    vf u[STEPS], raw[STEPS], steps[STEPS], z[STEPS], gy[STEPS], gu[STEPS], gdelta[STEPS], gz[STEPS], y[STEPS];
} Tile;

static void load_inputs(Tile *x, const Block *b, int64_t first, int64_t count) {
    load_tile(x->u, &b->p->u, b, first, count);
    load_tile(x->raw, &b->p->delta, b, first, count);
    for (int64_t t = 0; t < count; t++) x->steps[t] = step_size(b, x->raw[t]);
}

/* States of one tile, whose first one enters it in s->h; keeps each step's decays and the states before it. */
static void recompute(const Block *b, const Scratch *s, Tile *x, int64_t first, int64_t count) {
    int64_t states = b->p->states;
    for (int64_t t = 0; t < count; t++) {
        const float *B = rows_of(b, b->p->rows_B, first + t), *C = rows_of(b, b->p->rows_C, first + t);
        vf input = x->steps[t] * x->u[t], y = v_set(0.0f);
        for (int64_t n = 0; n < states; n++) {
            vf decay = decay_of(x->steps[t], b->A[n], b->A2[n], b->any_sign);
            s->states[t * states + n] = s->h[n];
            s->decays[t * states + n] = decay;
            s->h[n] = s->h[n] * decay + input * B[n];
            y += s->h[n] * C[n];
        }
        x->y[t] = y;
    }
}

/* Gradient of y before its gate, and the gate's own. */
static void through_gate(const Block *b, Tile *x, int64_t first, int64_t count) {
    load_tile(x->gy, &b->p->y, b, first, count);
    if (!b->p->z.data) return;
    load_tile(x->z, &b->p->z, b, first, count);
    for (int64_t t = 0; t < count; t++) {
        vf s = v_sigmoid(x->z[t]);
        x->gz[t] = x->gy[t] * (x->y[t] + b->D * x->u[t]) * (s * (1.0f + x->z[t] * (1.0f - s)));
        x->gy[t] *= x->z[t] * s;
    }
}

/* One step back: s->H is the gradient of the state after the step, then of the one before; s->h is the state after it, then before. */
static void step_back(const Block *b, const Scratch *s, Tile *x, int64_t t, const float *B, const float *C, vf *gA) {
    int64_t states = b->p->states;
    vf step = x->steps[t], input = step * x->u[t], g = x->gy[t], of_input = v_set(0.0f), of_step = of_input;
    for (int64_t n = 0; n < states; n++) {
        vf H = s->H[n] + g * C[n], decay = s->decays[t * states + n], before = s->states[t * states + n];
        s->products[n] = H * input;
        s->products[s->padded + n] = g * s->h[n];
        of_input += H * B[n];
        H *= decay;
        vf E = H * before;
        of_step += E * b->A[n];
        gA[n] += E * step;
        s->H[n] = H;
        s->h[n] = before;
    }
    x->gdelta[t] = of_step + of_input * x->u[t];
    x->gu[t] = of_input * step + g * b->D;
}

/* Sums of one step's products over the channels of the block, into the shares of its part. */
static void add_shares(const Scratch *s, float *share_B, float *share_C, int64_t states) {
    for (int64_t n = 0; n < s->padded; n += LANES) {
        int64_t left = states - n < LANES ? states - n : LANES;
        vf sum_B = v_sum_lanes(s->products + n), sum_C = v_sum_lanes(s->products + s->padded + n);
        v_store_part(share_B + n, sum_B + v_load_part(share_B + n, FLOAT32, left, 0.0f), FLOAT32, left);
        v_store_part(share_C + n, sum_C + v_load_part(share_C + n, FLOAT32, left, 0.0f), FLOAT32, left);
    }
}

static void backward_tile(const Block *b, const Scratch *s, Tile *x, int64_t first, int64_t count, int64_t offset, vd *gD, vd *gbias) {
    const Problem *p = b->p;
    int64_t states = p->states;
    vf sum_D = v_set(0.0f), sum_bias = sum_D, gA[states];
    memset(gA, 0, sizeof gA);
    recompute(b, s, x, first, count);
    through_gate(b, x, first, count);
    for (int64_t t = count - 1; t >= 0; t--) {
        const float *B = rows_of(b, p->rows_B, first + t), *C = rows_of(b, p->rows_C, first + t);
        step_back(b, s, x, t, B, C, gA);
        add_shares(s, p->share_B + offset + (B - p->rows_B), p->share_C + offset + (B - p->rows_B), states);
        vf raw = x->raw[t] + b->bias;
        if (p->softplus) x->gdelta[t] *= v_select(raw > 20.0f, v_set(1.0f), v_sigmoid(raw));
        sum_bias += x->gdelta[t];
        sum_D += x->gy[t] * x->u[t];
    }
    *gD += v_widen(sum_D);
    *gbias += v_widen(sum_bias);
    for (int64_t n = 0; n < states; n++) s->gA[n] += v_widen(gA[n]);
    store_tile(x->gu, &p->gu, b, first, count);
    store_tile(x->gdelta, &p->gdelta, b, first, count);
    if (p->z.data) store_tile(x->gz, &p->gz, b, first, count);
}

static void backward_block(const Block *b, const Scratch *s, int64_t offset) {
    const Problem *p = b->p;
    int64_t states = p->states;
    vd gD = v_set_double(0.0), gbias = gD;
    vf y[STEPS];
    Tile x;
    memset(s->h, 0, states * sizeof *s->h);
    memset(s->gA, 0, states * sizeof *s->gA);
    memset(s->products, 0, 2 * s->padded * sizeof *s->products);
    for (int64_t i = 0; i + 1 < p->tiles; i++) {
        memcpy(s->tile_states + i * states, s->h, states * sizeof *s->h);
        load_inputs(&x, b, i * STEPS, STEPS);
        advance_tile(b, s->h, x.steps, x.u, y, i * STEPS, STEPS, states, b->any_sign);
    }
    memcpy(s->tile_states + (p->tiles - 1) * states, s->h, states * sizeof *s->h);
    for (int64_t n = 0; n < states; n++) s->H[n] = load_parameter(p->last + b->batch * p->channels * states + n, b, states);
    for (int64_t i = p->tiles - 1; i >= 0; i--) {
        int64_t first = i * STEPS, count = p->steps - first < STEPS ? p->steps - first : STEPS;
        memcpy(s->h, s->tile_states + i * states, states * sizeof *s->h);
        load_inputs(&x, b, first, count);
        backward_tile(b, s, &x, first, count, offset, &gD, &gbias);
    }
    for (int64_t n = 0; n < states; n++) store_parameter(p->gA + n, b, states, v_narrow(s->gA[n]));
    store_parameter(p->gD, b, 1, v_narrow(gD));
    store_parameter(p->gbias, b, 1, v_narrow(gbias));
}

/* One part of one group of one batch element: every PARTS-th of its blocks. */
static int backward_part(const Problem *p, int64_t batch, int64_t group, int64_t part) {
    int64_t states = p->states, padded = (states + LANES - 1) / LANES * LANES, of_group = p->steps * states;
    int64_t size = p->batches * p->groups * of_group, offset = part * size;
    vd *memory = allocate(states * sizeof(vd) + ((p->tiles + 2 * STEPS + 4) * states + 2 * padded) * sizeof(vf));
    if (!memory) return 1;
    vf *parameters = (vf *)(memory + states);
    Scratch s = {.gA = memory, .h = parameters + 2 * states, .H = parameters + 3 * states, .padded = padded};
    s.products = parameters + 4 * states;
    s.states = s.products + 2 * padded;
    s.decays = s.states + STEPS * states;
    s.tile_states = s.decays + STEPS * states;
    memset(p->share_B + offset + (batch * p->groups + group) * of_group, 0, of_group * sizeof(float));
    memset(p->share_C + offset + (batch * p->groups + group) * of_group, 0, of_group * sizeof(float));
    for (int64_t i = part; i < p->blocks_per_group; i += p->parts) {
        Block b = block_at(p, batch, group, i, parameters);
        backward_block(&b, &s, offset);
    }
    free(memory);
    return 0;
}

static int backward_parts(const Problem *p, int threads) {
    int failed = 0;
    int64_t per_batch = p->groups * p->parts;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) reduction(| : failed)
    for (int64_t i = 0; i < p->batches * per_batch; i++)
        failed |= backward_part(p, i / per_batch, i % per_batch / p->parts, i % p->parts);
    return failed;
}
