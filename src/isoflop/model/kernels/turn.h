// Queries and keys as they meet: normed and turned; keys and values to where their sequence's table says.
#pragma once

#include "one_query.h"
#include "paged.h"
#include "stored.h"

static INLINE void turn_pairs(float* x, const float* cos, const float* sin, int64_t n, int64_t step, int64_t other) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
        const float a = x[i * step], b = x[i * step + other];
        x[i * step] = a * cos[i] - b * sin[i];
        x[i * step + other] = b * cos[i] + a * sin[i];
    }
}

// One head's vector; `norm` are the weights of its RMS norm, or null.
static void turn(float* to, const float* from, const Rows& c, const float* norm, int64_t row) {
    memcpy(to, from, 4 * c.D);
    if (norm) {
        Vec squares{};
        for (int64_t d = 0; d < c.D; d += L) squares += some(from + d, c.D - d) * some(from + d, c.D - d);
        const float factor = 1 / std::sqrt(total(squares) / static_cast<float>(c.D) + static_cast<float>(c.eps));
        for (int64_t d = 0; d < c.D; ++d) to[d] = from[d] * factor * norm[d];
    }
    if (!c.cos) return;
    const float *cos = c.cos + row * c.C, *sin = c.sin + row * c.C;
    if (c.interleaved) turn_pairs(to, cos, sin, c.C, 2, 1);
    else turn_pairs(to, cos, sin, c.C, 1, c.C);
}

// `turned`: room for D floats
template <class Stored>
static void store(const Rows& c, int64_t row, Where w, float* turned) {
    const int64_t place = w.table[w.position / c.page] * c.page + w.position % c.page;
    for (int64_t kv = 0; kv < c.K; ++kv) {
        turn(turned, c.k + row * c.k_row + kv * c.D, c, c.k_norm, row);
        Stored(c.keys, c.key_scales, c.K, c.D, kv).save(place, turned);
        if (c.values) Stored(c.values, c.value_scales, c.K, c.E, kv).save(place, c.v + row * c.v_row + kv * c.E);
    }
}

// What Scores and Queries read of a call
static Call call_of(const Rows& c) {
    Call call{};
    call.window = c.window, call.chunk = c.chunk, call.scale = c.scale, call.softcap = c.softcap;
    call.slopes = c.slopes, call.sinks = c.sinks, call.D = c.D, call.E = c.E;
    return call;
}
