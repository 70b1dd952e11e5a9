// Attention of one query, as in decoding: keys and values are read once, where they lie, for all heads that share them.
#pragma once

#include "attention.h"

static INLINE float total(Vec x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#else
    float sum = 0;
    for (int i = 0; i < L; ++i) sum += x[i];
    return sum;
#endif
}

static INLINE float largest(Vec x) {
    float most = x[0];
    for (int i = 1; i < L; ++i) most = std::max(most, x[i]);
    return most;
}

struct Powers {  // of a head's scores: the top, and the sum of 2^(score - top)
    float top, sum;
};

// A head's products with n keys to 2^(score - top), in place; zeros from n to capacity. The query stands `own` places
// after the first of them; the top is `least` or more.
static Powers powers(const Scores& s, float least, float* x, int64_t n, int64_t own, int64_t capacity) {
    Ints lane;
    for (int i = 0; i < L; ++i) lane[i] = i;
    Vec most = splat(least);
    for (int64_t j = 0; j < capacity; j += L) {
        Vec y = at(x + j) * s.scale;
        if (s.cap != 0) y = tanh(y) * s.cap;
        if (s.slope != 0) y -= s.slope * __builtin_convertvector(static_cast<int32_t>(own - j) - lane, Vec);
        y = lane < static_cast<int32_t>(n - j) ? y : splat(MASKED);
        put(x + j, y);
        most = larger(most, y);
    }
    float top = largest(most);
    Vec sum{};
    for (int64_t j = 0; j < capacity; j += L) {
        Vec y = exp2(at(x + j) - top);
        put(x + j, y);
        sum += y;
    }
    return {top, total(sum)};
}

// The weights of n keys, the last of them the query's own
static void weigh(const Scores& s, const float* sink_of_head, float* x, int64_t n, int64_t capacity) {
    const float sink = sink_of_head ? *sink_of_head * LOG2E : MASKED;
    const Powers found = powers(s, sink, x, n, n - 1, capacity);
    const float all = found.sum + (sink_of_head ? exp2(splat(sink - found.top))[0] : 0.0f);
    for (int64_t j = 0; j < capacity; j += L) put(x + j, at(x + j) / all);
}

struct One {
    const Call& c;
    int64_t first, n, capacity;  // the keys it sees, and room for their scores
    Scratch memory;
    float* p;  // [G][capacity]

    One(const Call& c)
        : c(c),
          first(Scores(c, 0).first_key(c.start)),
          n(c.start + 1 - first),
          capacity(up(n, L)),
          memory(c.H / c.K * capacity),
          p(memory.take(c.H / c.K * capacity)) {}

    void task(int64_t b, int64_t kv) {
        int64_t group = c.H / c.K, h = kv * group, r = 0;
        for (; r + 4 <= group; r += 4) dots<4>(b, kv, h + r, p + r * capacity);
        for (; r < group; ++r) dots<1>(b, kv, h + r, p + r * capacity);
        for (r = 0; r < group; ++r)
            weigh(Scores(c, h + r), c.sinks ? c.sinks + h + r : nullptr, p + r * capacity, n, capacity);
        for (r = 0; r + 4 <= group; r += 4) mix<4>(b, kv, h + r, p + r * capacity);
        for (; r < group; ++r) mix<1>(b, kv, h + r, p + r * capacity);
    }

    // to[i][j] = product of head h + i with key j
    template <int R>
    void dots(int64_t b, int64_t kv, int64_t h, float* to) const {
        const float* q = c.qs.at(c.q, b, 0, h);
        int64_t whole = down(c.D, L);
        for (int64_t j = 0; j < n; ++j) {
            const float* key = c.ks.at(c.k, b, first + j, kv);
            Vec sums[R];
            UNROLL for (int i = 0; i < R; ++i) sums[i] = Vec{};
            for (int64_t d = 0; d < whole; d += L) {
                Vec x = at(key + d);
                UNROLL for (int i = 0; i < R; ++i) sums[i] += at(q + i * c.qs.head + d) * x;
            }
            if (whole < c.D) {
                Vec x = some(key + whole, c.D - whole);
                UNROLL for (int i = 0; i < R; ++i) sums[i] += some(q + i * c.qs.head + whole, c.D - whole) * x;
            }
            UNROLL for (int i = 0; i < R; ++i) to[i * capacity + j] = total(sums[i]);
        }
    }

    template <int R>
    void mix(int64_t b, int64_t kv, int64_t h, const float* weights) const {
        int64_t e = 0;
        for (; e + 4 * L <= c.E; e += 4 * L) columns<R, 4>(b, kv, h, weights, e);
        for (; e < c.E; e += L) columns<R, 1>(b, kv, h, weights, e);
    }

    // V vectors of the output, from column e on, of R heads
    template <int R, int V>
    void columns(int64_t b, int64_t kv, int64_t h, const float* weights, int64_t e) const {
        int64_t left = c.E - e;
        Vec sums[R][V];
        UNROLL for (int i = 0; i < R; ++i)
            UNROLL for (int v = 0; v < V; ++v) sums[i][v] = Vec{};
        for (int64_t j = 0; j < n; ++j) {
            const float* row = c.vs.at(c.v, b, first + j, kv) + e;
            Vec x[V];
            UNROLL for (int v = 0; v < V; ++v) x[v] = V > 1 ? at(row + v * L) : some(row, left);
            UNROLL for (int i = 0; i < R; ++i)
                UNROLL for (int v = 0; v < V; ++v) sums[i][v] += weights[i * capacity + j] * x[v];
        }
        for (int i = 0; i < R; ++i)
            for (int v = 0; v < V; ++v)
                memcpy(c.out + (b * c.H + h + i) * c.E + e + v * L, &sums[i][v], 4 * std::min<int64_t>(L, left - v * L));
    }
};
