// A few rows times the matrices of their experts: y[r] = x[r] weight[expert[r]] + bias[expert[r]], fp32. Each matrix is
// read once, in its own order, for up to 4 rows of its expert. No sum depends on the number of threads.

#include "vectors.h"

// The caller's arguments, in this order (experts.py packs the same). x [R, M], weight [E, M, F], bias [E, F] or null.
struct Call {
    const float *x, *weight, *bias;
    const int64_t* expert;
    float* y;  // [R, F]
    int64_t R, M, F, threads;
};

constexpr int TILE = 4;         // rows of a tile, and rows of the matrix that one step takes
constexpr int64_t STRIP = 256;  // columns of a task

// y[row][f] += sum over i < STEP of x[row][m + i] * weight[m + i][f], for N rows and the columns from f to end
template <int N, int STEP>
static void step(const Call& c, const int64_t* rows, const float* weight, int64_t m, int64_t f, int64_t end) {
    float factors[N][STEP];
    for (int r = 0; r < N; ++r)
        for (int i = 0; i < STEP; ++i) factors[r][i] = c.x[rows[r] * c.M + m + i];
    for (; f + L <= end; f += L) {
        Vec w[STEP];
        UNROLL for (int i = 0; i < STEP; ++i) w[i] = at(weight + (m + i) * c.F + f);
        UNROLL for (int r = 0; r < N; ++r) {
            float* y = c.y + rows[r] * c.F + f;
            Vec sum = at(y);
            UNROLL for (int i = 0; i < STEP; ++i) sum += factors[r][i] * w[i];
            put(y, sum);
        }
    }
    for (; f < end; ++f)
        for (int r = 0; r < N; ++r)
            for (int i = 0; i < STEP; ++i) c.y[rows[r] * c.F + f] += factors[r][i] * weight[(m + i) * c.F + f];
}

template <int N>
static void tile(const Call& c, const int64_t* rows, int64_t from, int64_t end) {
    int64_t expert = c.expert[rows[0]], m = 0;
    const float* weight = c.weight + expert * c.M * c.F;
    for (int r = 0; r < N; ++r) {
        float* y = c.y + rows[r] * c.F;
        if (c.bias)
            std::copy(c.bias + expert * c.F + from, c.bias + expert * c.F + end, y + from);
        else
            std::fill(y + from, y + end, 0.0f);
    }
    for (; m + TILE <= c.M; m += TILE) step<N, TILE>(c, rows, weight, m, from, end);
    for (; m < c.M; ++m) step<N, 1>(c, rows, weight, m, from, end);
}

// All rows, some columns: rows of one expert are gathered in tiles as they come.
static void columns(const Call& c, int64_t from, int64_t end) {
    for (int64_t first = 0; first < c.R; ++first) {
        int64_t rows[TILE], before = 0, n = 0;
        for (int64_t r = 0; r < first; ++r) before += c.expert[r] == c.expert[first];
        if (before % TILE) continue;  // in a tile already
        for (int64_t r = first; r < c.R && n < TILE; ++r)
            if (c.expert[r] == c.expert[first]) rows[n++] = r;
        if (n == 4)
            tile<4>(c, rows, from, end);
        else if (n == 3)
            tile<3>(c, rows, from, end);
        else if (n == 2)
            tile<2>(c, rows, from, end);
        else
            tile<1>(c, rows, from, end);
    }
}

extern "C" void rows_of_experts(const Call* c) {
    if (c->threads <= 1) return columns(*c, 0, c->F);
    int64_t strips = (c->F + STRIP - 1) / STRIP;
#pragma omp parallel for num_threads(static_cast<int>(std::min(c->threads, strips))) schedule(static)
    for (int64_t s = 0; s < strips; ++s) columns(*c, s * STRIP, std::min((s + 1) * STRIP, c->F));
}
