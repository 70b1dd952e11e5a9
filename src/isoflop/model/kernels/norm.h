// The RMS norm of a row, wherever one is taken: the same bits by itself, before a matrix and in whatever company.
#pragma once

#include <cmath>

#include "vectors.h"

static INLINE float squares(const float* x, int64_t n) {  // their sum
    Vec sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * L <= n; i += 4 * L)
        UNROLL for (int k = 0; k < 4; ++k) sums[k] += at(x + i + k * L) * at(x + i + k * L);
    for (; i < n; i += L) sums[0] += some(x + i, n - i) * some(x + i, n - i);
    const Vec all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    float sum = 0;
    for (int k = 0; k < L; ++k) sum += all[k];
    return sum;
}

// y = x / sqrt(mean(x^2) + eps) * weight
static void norm_row(const float* x, const float* weight, float* y, int64_t N, double eps) {
    const float factor = 1 / std::sqrt(squares(x, N) / static_cast<float>(N) + static_cast<float>(eps));
    for (int64_t i = 0; i < N; i += L) {
        const int64_t n = std::min<int64_t>(L, N - i);
        const Vec normed = some(x + i, n) * factor * some(weight + i, n);
        if (n == L) put(y + i, normed);
        else memcpy(y + i, &normed, 4 * n);
    }
}
