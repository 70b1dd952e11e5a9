// A few rows times the matrices of their experts: y[r] = x[r] weight[expert[r]] + bias[expert[r]], fp32. Each matrix is
// read once, in its own order, for up to 4 rows of its expert. And a whole sparse feed-forward of a few rows. No sum
// depends on the number of threads.
//
// N row, R = N * K routed row, M d_model, E experts, H width after the first matrix, F before the second.

#include <cmath>

#include "part.h"
#include "pool.h"

// The caller's arguments, in this order (experts.py packs the same). x [R, M], weight [E, M, F], bias [E, F] or null.
struct Call {
    const float *x, *weight, *bias;
    const int64_t* expert;
    float* y;  // [R, F]
    int64_t R, M, F, threads;
};

constexpr int TILE = 4;         // rows of a tile, and rows of the matrix that one step takes
constexpr int64_t STRIP = 256;  // columns of a task, at least
constexpr int64_t AHEAD = 512;  // bytes from those in work to those asked for, where they follow each other

// y[row][f] += sum over i < STEP of x[row][m + i] * weight[m + i][f], for N rows and the columns from f to end. A single
// row of the matrix is read on and on; of several, those that come next are asked for.
template <int N, int STEP>
static void step(const Call& c, const int64_t* rows, const float* weight, int64_t m, int64_t f, int64_t end) {
    float factors[N][STEP];
    for (int r = 0; r < N; ++r)
        for (int i = 0; i < STEP; ++i) factors[r][i] = c.x[rows[r] * c.M + m + i];
    const int64_t ahead = STEP == 1 ? AHEAD : 4 * STEP * c.F;
    for (; f + L <= end; f += L) {
        Vec w[STEP];
        UNROLL for (int i = 0; i < STEP; ++i) {
            const float* from = weight + (m + i) * c.F + f;
            w[i] = at(from);
            __builtin_prefetch(reinterpret_cast<const char*>(from) + ahead);
        }
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
    if (N > 1)
        for (; m + TILE <= c.M; m += TILE) step<N, TILE>(c, rows, weight, m, from, end);
    for (; m < c.M; ++m) step<N, 1>(c, rows, weight, m, from, end);
}

// visit(rows, n): rows of one expert are gathered in tiles of up to `most` as they come.
template <int MOST, class Visit>
static void by_expert(const int64_t* expert, int64_t R, const Visit& visit) {
    for (int64_t first = 0; first < R; ++first) {
        int64_t rows[MOST], before = 0, n = 0;
        for (int64_t r = 0; r < first; ++r) before += expert[r] == expert[first];
        if (before % MOST) continue;  // in a tile already
        for (int64_t r = first; r < R && n < MOST; ++r)
            if (expert[r] == expert[first]) rows[n++] = r;
        visit(rows, n);
    }
}

// All rows, some columns
static void columns(const Call& c, int64_t from, int64_t end) {
    by_expert<TILE>(c.expert, c.R, [&](const int64_t* rows, int64_t n) {
        if (n == 4) tile<4>(c, rows, from, end);
        else if (n == 3) tile<3>(c, rows, from, end);
        else if (n == 2) tile<2>(c, rows, from, end);
        else tile<1>(c, rows, from, end);
    });
}

static void multiply(const Call& c) {
    const int64_t strip = c.threads <= 1 ? c.F : std::max(STRIP, up(c.F / (2 * c.threads), L));
    share((c.F + strip - 1) / strip, c.threads,
          [&](int64_t s) { columns(c, s * strip, std::min((s + 1) * strip, c.F)); });
}

extern "C" void rows_of_experts(const Call* c) { multiply(*c); }

// ---- a whole feed-forward

// One of its two stacks of matrices: as it lies, or a function and what it takes for each expert
struct Stack {
    const float *weight, *bias;  // [E, in, out], [E, out] or null
    const Linear* linears;       // [E], or null
};

// Packed by experts.py, in this order.
struct Experts {
    Linear router;
    void (*normalize)(const float* x, const float* weight, float* y, int64_t M, int64_t N, double eps, int64_t threads);
    const float* selection_bias;  // [E], or null
    Stack first, second;
    Linear shared_up, shared_down;  // null where nothing is shared
    int64_t M, E, K, H, F, shared_H, shared_F, activation, sigmoid, renormalize, weigh_input;
    double scale;
};

constexpr int64_t MOST_ROWS = 64;  // of one expert that meet its matrix at once
constexpr float TINY = 1e-20f;     // as routing.py's

static thread_local Kept kept;

// The scores of a row, in place, then its best experts and their weights (routing.py's `choose`)
static void choose(const Experts& e, float* score, int64_t* expert, float* weight) {
    float most = score[0], sum = 0;
    for (int64_t i = 1; i < e.E; ++i) most = std::max(most, score[i]);
    for (int64_t i = 0; i < e.E; ++i) {
        score[i] = e.sigmoid ? 1 / (1 + std::exp(-score[i])) : std::exp(score[i] - most);
        sum += score[i];
    }
    for (int64_t i = 0; i < e.E && !e.sigmoid; ++i) score[i] /= sum;
    sum = 0;
    for (int64_t k = 0; k < e.K; ++k) {
        int64_t best = -1;
        float merit = 0;
        for (int64_t i = 0; i < e.E; ++i) {
            const float own = score[i] + (e.selection_bias ? e.selection_bias[i] : 0.0f);
            if (std::find(expert, expert + k, i) == expert + k && (best < 0 || own > merit)) best = i, merit = own;
        }
        expert[k] = best, weight[k] = score[best], sum += score[best];
    }
    for (int64_t k = 0; k < e.K; ++k) {
        if (e.renormalize) weight[k] /= sum + TINY;
        weight[k] *= static_cast<float>(e.scale);
    }
}

static void multiply(const Stack& s, const float* x, const int64_t* expert, float* y, int64_t R, int64_t in, int64_t out,
                     int64_t threads) {
    if (!s.linears) return multiply({x, s.weight, s.bias, expert, y, R, in, out, threads});
    float* const room = kept.room(MOST_ROWS * (in + out));
    by_expert<MOST_ROWS>(expert, R, [&](const int64_t* rows, int64_t n) {
        const Linear& own = s.linears[expert[rows[0]]];
        if (n == 1) {
            own.multiply(own.matrix, x + rows[0] * in, nullptr, 0, nullptr, y + rows[0] * out, 1, threads);
        } else {
            for (int64_t i = 0; i < n; ++i) memcpy(room + i * in, x + rows[i] * in, 4 * in);
            own.multiply(own.matrix, room, nullptr, 0, nullptr, room + n * in, n, threads);
            for (int64_t i = 0; i < n; ++i) memcpy(y + rows[i] * out, room + n * in + i * out, 4 * out);
        }
        if (s.bias)
            for (int64_t i = 0; i < n; ++i)
                for (int64_t o = 0; o < out; ++o) y[rows[i] * out + o] += s.bias[expert[rows[0]] * out + o];
    });
}

struct Fed {
    const Experts& e;
    float* x;
    int64_t N, threads, R;
    Scratch memory;
    float *normed, *weight, *routed, *h, *active, *y;  // [N, M], [R], [R, M], [R, H], [R, F], [R, M]
    int64_t* expert;                                    // [R]

    Fed(const Experts& e, float* x, int64_t N, int64_t threads)
        : e(e), x(x), N(N), threads(threads), R(N * e.K),
          memory(N * (e.M + e.E) + R * (3 + 2 * e.M + e.H + e.F) + N * (e.shared_H + e.shared_F) + 16 * 10),
          normed(memory.take(N * e.M)), weight(memory.take(R)), routed(memory.take(R * e.M)), h(memory.take(R * e.H)),
          active(memory.take(R * e.F)), y(memory.take(R * e.M)), expert(reinterpret_cast<int64_t*>(memory.take(2 * R))) {}

    void run(const float* norm, double eps) {
        e.normalize(x, norm, normed, N, e.M, eps, 1);
        float* const scores = memory.take(N * e.E);
        e.router.multiply(e.router.matrix, normed, nullptr, 0, nullptr, scores, N, threads);
        for (int64_t n = 0; n < N; ++n) choose(e, scores + n * e.E, expert + n * e.K, weight + n * e.K);
        for (int64_t r = 0; r < R; ++r) scaled(normed + r / e.K * e.M, e.weigh_input ? weight[r] : 1.0f, routed + r * e.M);
        multiply(e.first, routed, expert, h, R, e.M, e.H, threads);
        for (int64_t r = 0; r < R; ++r) activate(active + r * e.F, h + r * e.H, e.F, e.activation);
        multiply(e.second, active, expert, y, R, e.F, e.M, threads);
        for (int64_t n = 0; n < N; ++n) add(n);
        if (e.shared_up.multiply) add_shared();
    }

    void scaled(const float* from, float factor, float* to) const {
        for (int64_t m = 0; m < e.M; ++m) to[m] = from[m] * factor;
    }

    // The sum of a row's experts
    void add(int64_t n) const {
        for (int64_t m = 0; m < e.M; ++m) {
            float all = 0;
            for (int64_t k = 0; k < e.K; ++k) {
                const int64_t r = n * e.K + k;
                all += e.weigh_input ? y[r * e.M + m] : y[r * e.M + m] * weight[r];
            }
            x[n * e.M + m] += all;
        }
    }

    void add_shared() {
        float *const wide = memory.take(N * e.shared_H), *const narrow = memory.take(N * e.shared_F);
        e.shared_up.multiply(e.shared_up.matrix, normed, nullptr, 0, nullptr, wide, N, threads);
        for (int64_t n = 0; n < N; ++n)
            activate(narrow + n * e.shared_F, wide + n * e.shared_H, e.shared_F, e.activation);
        e.shared_down.multiply(e.shared_down.matrix, narrow, nullptr, 0, x, x, N, threads);
    }
};

extern "C" void experts_feed(const void* experts, float* x, const float* norm, double eps, int64_t N, int64_t threads) {
    Fed(*static_cast<const Experts*>(experts), x, N, threads).run(norm, eps);
}
