// Decoder layers over rows, one after the other, in one call: norm, queries, keys and values, attention over pages,
// output; norm, feed-forward. What multiplies and attends are functions of other libraries, given with each layer.
//
// A row is one token. N row, M d_model, X width of queries, keys and values together, E width of what heads mix, H width
// between the matrices of a feed-forward, F after its gate.
//
// Few rows go through a matrix together, and threads share its outputs. Many are cut into blocks, each of which one thread
// takes from attention to attention: what is between two matrices stays in its nearest caches, and nobody waits.

#include "part.h"
#include "pool.h"

// Packed by layers.py, in this order. A layer may lack either half: what multiplies there is null.
struct Layer {
    Linear qkv, out, up, down;
    const float *mixer_norm, *feed_forward_norm;  // [M]
    void (*attend)(const Rows*);
    double eps;
    int64_t group, rope;  // which of the step's tables of pages and turns, or -1
    int64_t X, E, H, F, activation;
    Mix mix;  // of a mixer that is no attention, or null
    const void* mixer;
    Feed feed;  // of a feed-forward that is not two matrices, or null
    const void* feed_forward;
    Rows rows;  // what stays the same of what is attended
};

struct Step {
    float* x;  // [N, M], read and written
    const Where* const* where;  // of each group, of the first `alone` rows
    const Lane* const* lanes;  // of each group, [n_lanes]: the other rows
    const float* const* turns;  // of each rope, cos and sin, [N, C]
    const int64_t* slots;       // of each row
    int64_t N, M, alone, n_lanes, threads;
};

static thread_local Kept kept_wide, kept_narrow;

constexpr int64_t SHARED_FROM = 16384;  // numbers from which threads share an activation
constexpr int64_t TILE = 6;             // rows that matrices of few bits take at once
constexpr int64_t BLOCK = 8 * TILE;     // rows of a block, about


// Of a step: the rows, what a layer's heads are made of and what they mix.
struct Pass {
    const Layer* layers;
    int64_t n_layers;
    const Step& s;
    float *qkv, *mixed;  // [N, X], [N, E]

    // Rows [from, to) from the attention of the layer before `i` to the i-th's
    void between(int64_t i, int64_t from, int64_t to, int64_t threads) const {
        if (i > 0) {
            const Layer& l = layers[i - 1];
            float* x = s.x + from * s.M;
            if (l.out.multiply)
                l.out.multiply(l.out.matrix, mixed + from * l.E, nullptr, 0, x, x, to - from, threads);
            if (l.up.multiply) feed_forward(l, x, to - from, threads);
            if (l.feed) l.feed(l.feed_forward, x, l.feed_forward_norm, l.eps, to - from, threads);
        }
        if (i < n_layers && layers[i].qkv.multiply) {
            const Layer& l = layers[i];
            l.qkv.multiply(l.qkv.matrix, s.x + from * s.M, l.mixer_norm, l.eps, nullptr, qkv + from * l.X, to - from,
                           threads);
        }
    }

    static void feed_forward(const Layer& l, float* x, int64_t n, int64_t threads) {
        float *h = kept_wide.room(n * l.H), *active = kept_narrow.room(n * l.F);
        l.up.multiply(l.up.matrix, x, l.feed_forward_norm, l.eps, nullptr, h, n, threads);
        share(n, n * l.F < SHARED_FROM ? 1 : threads,
              [&](int64_t i) { activate(active + i * l.F, h + i * l.H, l.F, l.activation); });
        l.down.multiply(l.down.matrix, active, nullptr, 0, x, x, n, threads);
    }

    void mix(const Layer& l) const {
        const float* const* turns = l.rope < 0 ? nullptr : s.turns + 2 * l.rope;
        const Where* const where = l.group < 0 ? nullptr : s.where[l.group];  // recurrences have no pages
        const float *const cos = turns ? turns[0] : nullptr, *const sin = turns ? turns[1] : nullptr;
        const Tokens tokens{s.x, where, s.slots, cos, sin, l.mixer_norm, l.eps, s.N, s.threads};
        l.mix(l.mixer, tokens, qkv, mixed);
    }

    void attend(const Layer& l) const {
        Rows rows = l.rows;
        rows.q = qkv, rows.k = qkv + rows.H * rows.D, rows.v = rows.k + rows.K * rows.D, rows.out = mixed;
        rows.q_row = rows.k_row = rows.v_row = l.X;
        rows.where = s.where[l.group], rows.N = s.alone, rows.lanes = s.lanes[l.group], rows.n_lanes = s.n_lanes;
        rows.threads = s.threads;
        if (l.rope >= 0) rows.cos = s.turns[2 * l.rope], rows.sin = s.turns[2 * l.rope + 1];
        l.attend(&rows);
    }

    void run() const {
        const int64_t tiles = (s.N + TILE - 1) / TILE, blocks = s.N <= BLOCK ? 1 : up(up(s.N, BLOCK) / BLOCK, s.threads);
        for (int64_t i = 0; i <= n_layers; ++i) {
            if (blocks == 1) between(i, 0, s.N, s.threads);
            else
                share(blocks, s.threads, [&](int64_t b) {
                    between(i, b * tiles / blocks * TILE, std::min(s.N, (b + 1) * tiles / blocks * TILE), 1);
                });
            if (i < n_layers && layers[i].mix) mix(layers[i]);
            else if (i < n_layers && layers[i].qkv.multiply) attend(layers[i]);
        }
    }
};

extern "C" void run_layers(const Layer* layers, int64_t n, const Step* step) {
    int64_t X = 0, E = 0;
    for (int64_t i = 0; i < n; ++i) X = std::max(X, layers[i].X), E = std::max(E, layers[i].E);
    Scratch memory(up(step->N * X, L) + up(step->N * E, L));
    float* const qkv = memory.take(step->N * X);
    Pass{layers, n, *step, qkv, memory.take(step->N * E)}.run();
}
