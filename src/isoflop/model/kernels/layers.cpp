// Decoder layers over a few rows, one after the other, in one call: norm, queries, keys and values, attention over pages,
// output; norm, feed-forward. What multiplies and attends are functions of other libraries, given with each layer.
//
// A row is one token. N row, M d_model, X width of queries, keys and values together, E width of what heads mix, H width
// between the matrices of a feed-forward, F after its gate.

#include "paged.h"
#include "pool.h"
#include "vectors.h"

#include <vector>

enum Activation : int64_t { RELU, RELU2, SILU, GELU_TANH, SWIGLU, GEGLU_TANH };

// y = (normed) x times the matrix (+ add): quantized_linear, rows_linear
typedef void (*Multiply)(const void* matrix, const float* x, const float* norm, double eps, const float* add, float* y,
                         int64_t n_rows, int64_t threads);

struct Linear {
    Multiply multiply;
    const void* matrix;
};

// Packed by layers.py, in this order. A layer may lack either half: what multiplies there is null.
struct Layer {
    Linear qkv, out, up, down;
    const float *mixer_norm, *feed_forward_norm;  // [M]
    void (*attend)(const Rows*);
    double eps;
    int64_t group, rope;  // which of the step's tables of pages and turns
    int64_t X, E, H, F, activation;
    Rows rows;  // what stays the same of what is attended
};

struct Step {
    float* x;  // [N, M], read and written
    const Where* const* where;  // of each group, [N]
    const float* const* turns;  // of each rope, cos and sin, [N, C]
    int64_t N, M, threads;
};

static INLINE Vec unit(Vec x, int64_t activation) {
    switch (activation) {
        case RELU: return larger(x, Vec{});
        case RELU2: return larger(x, Vec{}) * larger(x, Vec{});
        case GELU_TANH:
        case GEGLU_TANH: return 0.5f * x * (1.0f + tanh(0.7978845608f * (x + 0.044715f * x * x * x)));
        default: return x / (1.0f + exp2(x * -LOG2E));
    }
}

static void activate(float* to, const float* h, int64_t F, int64_t activation) {
    const bool gated = activation >= SWIGLU;
    for (int64_t f = 0; f < F; f += L) {
        const int64_t n = std::min<int64_t>(L, F - f);
        Vec y = unit(some(h + f, n), activation);
        if (gated) y *= some(h + F + f, n);
        memcpy(to + f, &y, 4 * n);
    }
}

// Memory that a thread keeps between calls
struct Kept {
    std::vector<float> memory;
    float* room(int64_t n) {
        if (static_cast<int64_t>(memory.size()) < n) memory.resize(n);
        return memory.data();
    }
};
static thread_local Kept kept_wide, kept_narrow;

static void mix(const Layer& l, const Step& s) {
    float *qkv = kept_wide.room(s.N * l.X), *mixed = kept_narrow.room(s.N * l.E);
    l.qkv.multiply(l.qkv.matrix, s.x, l.mixer_norm, l.eps, nullptr, qkv, s.N, s.threads);
    Rows rows = l.rows;
    rows.q = qkv, rows.k = qkv + rows.H * rows.D, rows.v = rows.k + rows.K * rows.D, rows.out = mixed;
    rows.q_row = rows.k_row = rows.v_row = l.X;
    rows.where = s.where[l.group], rows.N = s.N, rows.threads = s.threads;
    if (l.rope >= 0) rows.cos = s.turns[2 * l.rope], rows.sin = s.turns[2 * l.rope + 1];
    l.attend(&rows);
    l.out.multiply(l.out.matrix, mixed, nullptr, 0, s.x, s.x, s.N, s.threads);
}

constexpr int64_t SHARED_FROM = 16384;  // numbers from which threads share an activation

static void feed_forward(const Layer& l, const Step& s) {
    float *h = kept_wide.room(s.N * l.H), *active = kept_narrow.room(s.N * l.F);
    l.up.multiply(l.up.matrix, s.x, l.feed_forward_norm, l.eps, nullptr, h, s.N, s.threads);
    share(s.N, s.N * l.F < SHARED_FROM ? 1 : s.threads,
          [&](int64_t i) { activate(active + i * l.F, h + i * l.H, l.F, l.activation); });
    l.down.multiply(l.down.matrix, active, nullptr, 0, s.x, s.x, s.N, s.threads);
}

extern "C" void run_layers(const Layer* layers, int64_t n, const Step* step) {
    for (int64_t i = 0; i < n; ++i) {
        if (layers[i].qkv.multiply) mix(layers[i], *step);
        if (layers[i].up.multiply) feed_forward(layers[i], *step);
    }
}
