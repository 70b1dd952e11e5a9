// What a token takes of each token of its chunk in Mamba-2, in fp32, forward and backward in one pass each:
// weight_LS = exp(log_L - log_S) * score_LS for S <= L, else 0; see ../ssd.py.
//
// Q chunk of a head, G chunk of a group, R heads of a group (Q = G * R), L position that reads, S one that is read.
// log is float64, as a sum of two floats here: differences of large sums keep their last bits. The gain of a reader and
// the loss of a writer are summed in float64, without S = L: they must cancel.

#include <cstdint>
#include <vector>

#include "vectors.h"

static INLINE void split(const double* log, float* high, float* low, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        high[i] = static_cast<float>(log[i]);
        low[i] = static_cast<float>(log[i] - high[i]);
    }
}

// exp(log_l - log_s) for the n positions s from `s` on.
static INLINE Vec decay(const float* high, const float* low, int64_t l, int64_t s, int64_t n) {
    return exp2(LOG2E * ((high[l] - some(high + s, n)) + (low[l] - some(low + s, n))));
}

static INLINE void put_some(float* to, Vec x, int64_t n) {
    if (n >= L) put(to, x);
    else memcpy(to, &x, 4 * n);
}

extern "C" {

// log [Q, T], score [G, T, T], weight [Q, T, T] of T positions.
void weights_forward(const double* log, const float* score, float* weight, int64_t G, int64_t R, int64_t T,
                     int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t q = 0; q < G * R; q++) {
        std::vector<float> high(T), low(T);
        split(log + q * T, high.data(), low.data(), T);
        for (int64_t l = 0; l < T; l++) {
            const float* from = score + (q / R * T + l) * T;
            float* to = weight + (q * T + l) * T;
            for (int64_t s = 0; s <= l; s += L) {
                const int64_t n = std::min<int64_t>(L, l + 1 - s);
                put_some(to + s, decay(high.data(), low.data(), l, s, n) * some(from + s, n), n);
            }
            std::fill(to + l + 1, to + T, 0.0f);
        }
    }
}

// dscore [G, T, T] and dlog [Q, T] from dweight.
void weights_backward(const double* log, const float* score, const float* dweight, float* dscore, double* dlog,
                      int64_t G, int64_t R, int64_t T, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t g = 0; g < G; g++) {
        std::vector<float> high(T), low(T), product(T + L);
        std::fill(dscore + g * T * T, dscore + (g + 1) * T * T, 0.0f);
        for (int64_t q = g * R; q < (g + 1) * R; q++) {
            split(log + q * T, high.data(), low.data(), T);
            double* gain = dlog + q * T;
            std::fill(gain, gain + T, 0.0);
            for (int64_t l = 0; l < T; l++) {
                const float *from = score + (g * T + l) * T, *grad = dweight + (q * T + l) * T;
                float* to = dscore + (g * T + l) * T;
                for (int64_t s = 0; s <= l; s += L) {
                    const int64_t n = std::min<int64_t>(L, l + 1 - s);
                    const Vec part = decay(high.data(), low.data(), l, s, n) * some(grad + s, n);
                    put_some(to + s, some(to + s, n) + part, n);
                    put(product.data() + s, part * some(from + s, n));
                }
                double sum[8] = {};
                int64_t s = 0;
                for (; s + 8 <= l; s += 8) {
                    for (int i = 0; i < 8; i++) sum[i] += product[s + i], gain[s + i] -= product[s + i];
                }
                for (; s < l; s++) sum[0] += product[s], gain[s] -= product[s];
                for (int i = 0; i < 8; i++) gain[l] += sum[i];
            }
        }
    }
}

}  // extern "C"
