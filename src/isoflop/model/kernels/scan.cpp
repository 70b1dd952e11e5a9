// The recurrence of Mamba-1 in fp32, forward and backward; see ../scan.py for what is computed and why in chunks.
//
// B batch, T position, I d_inner, N d_state. A tile is L channels, contiguous in memory: no step goes across lanes.
// No sum depends on the number of threads.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "vectors.h"

static INLINE void put_some(float* to, Vec x, int64_t n) {
    if (n >= L) put(to, x);
    else memcpy(to, &x, 4 * n);
}

static INLINE Vec exponential(Vec x) { return exp2(x * LOG2E); }

extern "C" {

// x, dt, y [B, T, I]; a [I, N]; b, c [B, T, N]; state, last [B, I, N];
// found [chunks, B, I, N]: the state that each chunk of `length` tokens finds.
void scan_forward(const float* x, const float* dt, const float* a, const float* b, const float* c, const float* state,
                  float* y, float* last, float* found, int64_t B, int64_t T, int64_t I, int64_t N, int64_t length,
                  int64_t threads) {
    const int64_t tiles = (I + L - 1) / L;
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
    for (int64_t batch = 0; batch < B; batch++) {
        for (int64_t tile = 0; tile < tiles; tile++) {
            const int64_t i0 = tile * L, width = std::min<int64_t>(L, I - i0);
            std::vector<Vec> rates(N), states(N);
            for (int64_t n = 0; n < N; n++) {
                for (int64_t i = 0; i < width; i++) {
                    rates[n][i] = a[(i0 + i) * N + n];
                    states[n][i] = state[(batch * I + i0 + i) * N + n];
                }
            }
            auto keep = [&](float* to) {
                for (int64_t i = 0; i < width; i++)
                    for (int64_t n = 0; n < N; n++) to[(batch * I + i0 + i) * N + n] = states[n][i];
            };
            for (int64_t t = 0; t < T; t++) {
                if (t % length == 0) keep(found + t / length * B * I * N);
                const int64_t at = (batch * T + t) * I + i0, row = (batch * T + t) * N;
                const Vec step = some(dt + at, width), written = step * some(x + at, width);
                Vec sum{};
                for (int64_t n = 0; n < N; n++) {
                    states[n] = exponential(step * rates[n]) * states[n] + written * b[row + n];
                    sum += states[n] * c[row + n];
                }
                put_some(y + at, sum, width);
            }
            keep(last);
        }
    }
}

// Gradients of all inputs; within a chunk, states and decays are computed again. A task is a share of a sequence's tiles,
// the same at any number of threads. The caller sums da [B, I, N] over B, and db and dc [shares, B, T, N] over shares.
void scan_backward(const float* x, const float* dt, const float* a, const float* b, const float* c, const float* found,
                   const float* dy, const float* dlast, float* dx, float* ddt, float* da, float* db, float* dc,
                   float* dstate, int64_t B, int64_t T, int64_t I, int64_t N, int64_t length, int64_t shares,
                   int64_t threads) {
    const int64_t tiles = (I + L - 1) / L, chunks = (T + length - 1) / length;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = 0; task < shares * B; task++) {
        const int64_t share = task / B, batch = task % B;
        std::vector<Vec> rates(N), adjoint(N), drates(N), decays(length * N), states((length + 1) * N);
        std::vector<Vec> sums_b(T * N), sums_c(T * N);
        for (int64_t tile = tiles * share / shares; tile < tiles * (share + 1) / shares; tile++) {
            const int64_t i0 = tile * L, width = std::min<int64_t>(L, I - i0);
            for (int64_t n = 0; n < N; n++) {
                drates[n] = rates[n] = adjoint[n] = Vec{};
                for (int64_t i = 0; i < width; i++) {
                    rates[n][i] = a[(i0 + i) * N + n];
                    adjoint[n][i] = dlast[(batch * I + i0 + i) * N + n];
                }
            }
            for (int64_t chunk = chunks; chunk-- > 0;) {
                const int64_t start = chunk * length, end = std::min(T, start + length);
                const float* first = found + ((chunk * B + batch) * I + i0) * N;
                for (int64_t n = 0; n < N; n++) {
                    states[n] = Vec{};
                    for (int64_t i = 0; i < width; i++) states[n][i] = first[i * N + n];
                }
                for (int64_t t = start; t < end; t++) {
                    const int64_t at = (batch * T + t) * I + i0, row = (batch * T + t) * N;
                    const Vec step = some(dt + at, width), written = step * some(x + at, width);
                    Vec *decay = &decays[(t - start) * N], *before = &states[(t - start) * N], *after = before + N;
                    for (int64_t n = 0; n < N; n++) {
                        decay[n] = exponential(step * rates[n]);
                        after[n] = decay[n] * before[n] + written * b[row + n];
                    }
                }
                for (int64_t t = end; t-- > start;) {
                    const int64_t at = (batch * T + t) * I + i0, row = (batch * T + t) * N;
                    const Vec step = some(dt + at, width), value = some(x + at, width), grad = some(dy + at, width);
                    const Vec *decay = &decays[(t - start) * N], *before = &states[(t - start) * N], *after = before + N;
                    const Vec written = step * value;
                    Vec dwritten{}, dstep{};
                    for (int64_t n = 0; n < N; n++) {
                        const Vec total = adjoint[n] + grad * c[row + n];
                        sums_c[t * N + n] += grad * after[n];
                        sums_b[t * N + n] += total * written;
                        dwritten += total * b[row + n];
                        adjoint[n] = total * decay[n];
                        const Vec drate = adjoint[n] * before[n];
                        dstep += drate * rates[n];
                        drates[n] += drate * step;
                    }
                    put_some(dx + at, dwritten * step, width);
                    put_some(ddt + at, dstep + dwritten * value, width);
                }
            }
            for (int64_t i = 0; i < width; i++) {
                for (int64_t n = 0; n < N; n++) {
                    da[(batch * I + i0 + i) * N + n] = drates[n][i];
                    dstate[(batch * I + i0 + i) * N + n] = adjoint[n][i];
                }
            }
        }
        for (int64_t at = 0; at < T * N; at++) {
            float sum_b = 0, sum_c = 0;
            for (int lane = 0; lane < L; lane++) sum_b += sums_b[at][lane], sum_c += sums_c[at][lane];
            db[task * T * N + at] = sum_b;
            dc[task * T * N + at] = sum_c;
        }
    }
}

}  // extern "C"
