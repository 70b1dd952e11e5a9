// One token of each of several sequences through Mamba-2 (Dao and Gu 2024, arXiv 2405.21060, section 7.1), between its two
// matrices: convolution, recurrence, gated norm. What a sequence keeps is read and written once, where it lies.
//
// N row, C channel of the convolution, K its width, H head, G group of heads, P d_head, S d_state, I = H * P. No row
// depends on the rows beside it or on the number of threads.

#include <cmath>

#include "one_query.h"
#include "part.h"
#include "pool.h"

// Packed by mamba2.py, in this order.
struct Mamba2 {
    const float *kernel, *bias;  // [C, K], [C] or null
    const float *dt_bias, *a_log, *d;  // [H]
    const float* norm;                 // [I]
    float *windows, *written;          // [slots, K, C], [slots, G, S, I / G]
    int64_t H, P, G, S, C, K, norm_groups;
    double norm_eps, dt_min, dt_max;

    int64_t I() const { return H * P; }
    int64_t width() const { return 2 * I() + 2 * G * S + H; }
    int64_t of_group() const { return I() / G; }
};

static INLINE Vec silu(Vec x) { return unit(x, SILU); }

static INLINE void put_some(float* to, Vec x, int64_t n) {
    if (n >= L) put(to, x);
    else memcpy(to, &x, 4 * n);
}

// The window moves on by one token; to [C] = silu(convolution)
static void convolve(const Mamba2& m, float* window, const float* x, float* to) {
    memmove(window, window + m.C, 4 * (m.K - 1) * m.C);
    memcpy(window + (m.K - 1) * m.C, x, 4 * m.C);
    for (int64_t c = 0; c < m.C; ++c) {
        float sum = m.bias ? m.bias[c] : 0.0f;
        for (int64_t k = 0; k < m.K; ++k) sum += m.kernel[c * m.K + k] * window[k * m.C + c];
        to[c] = sum;
    }
    for (int64_t c = 0; c < m.C; c += L) put_some(to + c, silu(some(to + c, m.C - c)), m.C - c);
}

// What each value is multiplied by before it is written, and what is left of what was written before: dt x, exp(dt a)
static void step_sizes(const Mamba2& m, const float* dt, const float* x, float* scaled, float* left) {
    for (int64_t h = 0; h < m.H; ++h) {
        const float raw = dt[h] + m.dt_bias[h], soft = raw > 20.0f ? raw : std::log1p(std::exp(raw));
        const float size = std::min(std::max(soft, static_cast<float>(m.dt_min)), static_cast<float>(m.dt_max));
        const float decay = std::exp(size * -std::exp(m.a_log[h]));
        for (int64_t p = h * m.P; p < (h + 1) * m.P; ++p) scaled[p] = x[p] * size, left[p] = decay;
    }
}

// Values from .. to - 1 of one group: state = state * left + b scaled, y = c state + d x
static void recur(const Mamba2& m, float* state, const float* scaled, const float* left, const float* b, const float* c,
                  int64_t from, int64_t to, float* y) {
    std::fill(y + from, y + to, 0.0f);
    for (int64_t s = 0; s < m.S; ++s) {
        float* row = state + s * m.of_group();
        const float gain = b[s], take = c[s];
        for (int64_t w = from; w < to; w += L) {
            const int64_t n = to - w;
            const Vec next = some(row + w, n) * some(left + w, n) + gain * some(scaled + w, n);
            put_some(row + w, next, n);
            put_some(y + w, some(y + w, n) + take * next, n);
        }
    }
}

// to = RMS norm of (y + d x) silu(z), over each of norm_groups equal parts
static void gate(const Mamba2& m, const float* z, const float* x, float* y, float* to) {
    const int64_t I = m.I(), part = I / m.norm_groups;
    for (int64_t h = 0; h < m.H; ++h)
        for (int64_t p = h * m.P; p < (h + 1) * m.P; ++p) y[p] += x[p] * m.d[h];
    for (int64_t begin = 0; begin < I; begin += part) {
        Vec squares{};
        for (int64_t i = begin; i < begin + part; i += L) {
            const int64_t n = begin + part - i;
            const Vec v = some(y + i, n) * silu(some(z + i, n));
            squares += v * v;
            put_some(y + i, v, n);
        }
        const float factor = 1 / std::sqrt(total(squares) / static_cast<float>(part) + static_cast<float>(m.norm_eps));
        for (int64_t i = begin; i < begin + part; ++i) to[i] = y[i] * factor * m.norm[i];
    }
}

static thread_local Kept kept;

constexpr int64_t SLICE = 256;  // values of a state's rows that a task takes, at least

extern "C" void mamba2_mix(const void* mixer, const Tokens& t, const float* in, float* out) {
    const Mamba2& m = *static_cast<const Mamba2*>(mixer);
    const int64_t I = m.I(), J = m.G * m.S, W = m.of_group(), row = m.C + 3 * I;
    float* const memory = kept.room(t.N * row);
    const auto part = [&](int64_t n, int64_t skip) { return memory + n * row + skip; };
    share(t.N, t.threads, [&](int64_t n) {
        const float* const given = in + n * m.width();
        float* const x = part(n, 0);
        convolve(m, m.windows + t.slots[n] * m.K * m.C, given + I, x);
        step_sizes(m, given + I + m.C, x, part(n, m.C), part(n, m.C + I));
    });
    const int64_t slices = t.threads > 1 && t.N < 2 * t.threads ? std::max<int64_t>(1, std::min(W / SLICE, 2 * t.threads)) : 1;
    share(t.N * m.G * slices, t.threads, [&](int64_t task) {
        const int64_t n = task / (m.G * slices), g = task / slices % m.G, slice = task % slices;
        const auto at_slice = [&](int64_t i) { return i == slices ? W : down(i * W / slices, L); };
        const float *b = part(n, I + g * m.S), *c = part(n, I + J + g * m.S);
        recur(m, m.written + (t.slots[n] * m.G + g) * m.S * W, part(n, m.C + g * W), part(n, m.C + I + g * W), b, c,
              at_slice(slice), at_slice(slice + 1), part(n, m.C + 2 * I + g * W));
    });
    share(t.N, t.threads, [&](int64_t n) {
        gate(m, in + n * m.width(), part(n, 0), part(n, m.C + 2 * I), out + n * I);
    });
}
