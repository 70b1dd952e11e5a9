// What an attention is asked for, and how it scores. Scores are in powers of two: log2(e) is folded into the scale.
#pragma once

#include "vectors.h"

constexpr float MASKED = -1e30f;  // finite: infinity minus infinity is not a number

// The caller's arguments, in this order (attention.py packs the same). Strides in floats; missing tensors are null.
struct Strides {
    int64_t batch, row, head;

    template <class T>
    T* at(T* p, int64_t b, int64_t r, int64_t h) const {
        return p + b * batch + r * row + h * head;
    }
};

struct Call {
    const float *q, *k, *v, *slopes, *sinks;
    float *out, *lse;  // [B, T, H, E], [B, H, T]
    const float* grad;
    float *dq, *dk, *dv, *dsinks;  // dsinks [B, H]
    Strides qs, ks, vs, gs, dqs, dks, dvs;
    int64_t B, T, H, K, D, E, start, window, chunk, threads;
    double scale, softcap;
};

// ---- which keys a query sees, and what its scores are

struct Scores {
    int64_t window, chunk;
    float scale, cap, slope;  // of the products; of the capped score (0: none); of ALiBi. All times log2(e).
    bool plain;

    Scores(const Call& c, int64_t head)
        : window(c.window),
          chunk(c.chunk),
          scale(static_cast<float>(c.softcap > 0 ? c.scale / c.softcap : c.scale * 1.4426950408889634)),
          cap(static_cast<float>(c.softcap * 1.4426950408889634)),
          slope(c.slopes ? c.slopes[head] * LOG2E : 0.0f),
          plain(cap == 0 && slope == 0) {}

    int64_t first_key(int64_t position) const {
        return std::max<int64_t>({0, position - window + 1, position / chunk * chunk});
    }
    int64_t end_position(int64_t key) const {  // the first position that no longer sees this key
        return std::min(key + window, (key / chunk + 1) * chunk);
    }
};
