// What layers.cpp asks of other libraries for one step, and what it shares with them.
#pragma once

#include "paged.h"
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

// The rows of a step, as a mixer meets them: one token each.
struct Tokens {
    const float* x;          // [N, M], what the layer's norm is yet to be applied to
    const Where* where;      // [N], of the layer's group
    const int64_t* slots;    // [N], of what recurrent layers keep
    const float *cos, *sin;  // [N, C] of the layer's turns, or null
    const float* norm;
    double eps;
    int64_t N, threads;
};

// What lies between a mixer's first matrix, whose outputs are `in`, and its last, whose inputs are `out`
typedef void (*Mix)(const void* mixer, const Tokens& tokens, const float* in, float* out);

// x += what a feed-forward makes of x, normed
typedef void (*Feed)(const void* feed_forward, float* x, const float* norm, double eps, int64_t n_rows, int64_t threads);

// Memory that a thread keeps between calls
struct Kept {
    std::vector<float> memory;
    float* room(int64_t n) {
        if (static_cast<int64_t>(memory.size()) < n) memory.resize(n);
        return memory.data();
    }
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

// F numbers of h, let through by as many before them where there is a gate
static INLINE void activate(float* to, const float* h, int64_t F, int64_t activation) {
    const bool gated = activation >= SWIGLU;
    for (int64_t f = 0; f < F; f += L) {
        const int64_t n = std::min<int64_t>(L, F - f);
        Vec y = unit(some(h + f, n), activation);
        if (gated) y *= some(h + F + f, n);
        memcpy(to + f, &y, 4 * n);
    }
}
