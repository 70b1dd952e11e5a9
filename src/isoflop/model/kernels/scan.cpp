// The recurrence of Mamba-1 in fp32, forward and backward; see ../scan.py for what is computed and why in chunks.
//
// B batch, T position, I d_inner, N d_state. A tile is LANES channels, contiguous in memory: no step goes across lanes.
// No sum depends on the number of threads.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

constexpr int LANES = 16;
typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

#define INLINE static inline __attribute__((always_inline))

INLINE Vec all(float x) { return x - Vec{}; }

INLINE Vec load(const float* from, int64_t n) {
    Vec x{};
    if (n >= LANES) std::memcpy(&x, from, sizeof x);
    else std::memcpy(&x, from, 4 * n);
    return x;
}

INLINE void store(float* to, Vec x, int64_t n) {
    if (n >= LANES) std::memcpy(to, &x, sizeof x);
    else std::memcpy(to, &x, 4 * n);
}

// exp by 2^k * p(r): r in [-ln2 / 2, ln2 / 2], p the Taylor polynomial of degree 7 (relative error below 1e-7). Saturates
// at e^-87 and e^88; keeps a NaN.
INLINE Vec exp_of(Vec x) {
    const Vec low = all(-87.0f), high = all(88.0f);
    x = x < low ? low : x;
    x = x > high ? high : x;
    const Vec shifter = all(12582912.0f);  // 1.5 * 2^23: what is added and taken away again is rounded to an integer
    const Vec k = (x * 1.44269504088896f + shifter) - shifter;
    const Vec r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
    Vec p = all(1.0f / 5040);
    for (float coefficient : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = p * r + coefficient;
    const Vec integral = k == k ? k : Vec{};
    const Ints power = (__builtin_convertvector(integral, Ints) + 127) << 23;
    Vec scale;
    std::memcpy(&scale, &power, sizeof scale);
    return p * scale;
}

extern "C" {

// x, dt, y [B, T, I]; a [I, N]; b, c [B, T, N]; state, last [B, I, N];
// found [chunks, B, I, N]: the state that each chunk of `length` tokens finds.
void scan_forward(const float* x, const float* dt, const float* a, const float* b, const float* c, const float* state,
                  float* y, float* last, float* found, int64_t B, int64_t T, int64_t I, int64_t N, int64_t length,
                  int64_t threads) {
    const int64_t tiles = (I + LANES - 1) / LANES;
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
    for (int64_t batch = 0; batch < B; batch++) {
        for (int64_t tile = 0; tile < tiles; tile++) {
            const int64_t i0 = tile * LANES, width = std::min<int64_t>(LANES, I - i0);
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
                const Vec step = load(dt + at, width), written = step * load(x + at, width);
                Vec sum{};
                for (int64_t n = 0; n < N; n++) {
                    states[n] = exp_of(step * rates[n]) * states[n] + written * b[row + n];
                    sum += states[n] * c[row + n];
                }
                store(y + at, sum, width);
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
    const int64_t tiles = (I + LANES - 1) / LANES, chunks = (T + length - 1) / length;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = 0; task < shares * B; task++) {
        const int64_t share = task / B, batch = task % B;
        std::vector<Vec> rates(N), adjoint(N), drates(N), decays(length * N), states((length + 1) * N);
        std::vector<Vec> sums_b(T * N), sums_c(T * N);
        for (int64_t tile = tiles * share / shares; tile < tiles * (share + 1) / shares; tile++) {
            const int64_t i0 = tile * LANES, width = std::min<int64_t>(LANES, I - i0);
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
                    const Vec step = load(dt + at, width), written = step * load(x + at, width);
                    Vec *decay = &decays[(t - start) * N], *before = &states[(t - start) * N], *after = before + N;
                    for (int64_t n = 0; n < N; n++) {
                        decay[n] = exp_of(step * rates[n]);
                        after[n] = decay[n] * before[n] + written * b[row + n];
                    }
                }
                for (int64_t t = end; t-- > start;) {
                    const int64_t at = (batch * T + t) * I + i0, row = (batch * T + t) * N;
                    const Vec step = load(dt + at, width), value = load(x + at, width), grad = load(dy + at, width);
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
                    store(dx + at, dwritten * step, width);
                    store(ddt + at, dstep + dwritten * value, width);
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
            for (int lane = 0; lane < LANES; lane++) sum_b += sums_b[at][lane], sum_c += sums_c[at][lane];
            db[task * T * N + at] = sum_b;
            dc[task * T * N + at] = sum_c;
        }
    }
}

}  // extern "C"
