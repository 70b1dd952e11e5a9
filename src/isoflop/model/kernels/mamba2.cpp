// Mamba-2 (Dao and Gu 2024, arXiv 2405.21060, section 7.1) between its two matrices: convolution, recurrence, gated norm.
// One token of each of several sequences: what each keeps is read and written once, where it lies. Or many tokens of
// one, by the recurrence itself: a few columns of the state at a time stay in the first cache, so that it takes no
// more arithmetic than products of chunks would (d_state of 128), and nothing else. Both give the same, bit for bit.
//
// N row, T token, C channel of the convolution, K its width, H head, G group of heads, P d_head, S d_state, I = H * P. No
// row depends on the rows beside it or on the number of threads.

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

// sum + a b, rounded as everywhere here: a loop over k might round products first, as it adds them up in order
static INLINE float plus(float sum, float a, float b) {
#if defined(__FMA__)
    return __builtin_fmaf(a, b, sum);
#else
    return sum + a * b;
#endif
}

// What is left of a state and what is written to it: one product is rounded by itself, wherever this stands
static INLINE Vec moved(Vec state, Vec left, float gain, Vec scaled) {
    Vec written = gain * scaled;
#if defined(__AVX512F__)
    asm("" : "+v"(written));  // or the compiler would choose which of the two, here and there
#elif defined(__AVX__)
    asm("" : "+x"(written));
#endif
    return state * left + written;
}

static INLINE void put_some(float* to, Vec x, int64_t n) {
    if (n >= L) put(to, x);
    else memcpy(to, &x, 4 * n);
}

// The window moves on by some tokens, rows of x that are `row` apart
static void move_on(const Mamba2& m, float* window, const float* x, int64_t row, int64_t n) {
    const int64_t kept = std::max<int64_t>(0, m.K - n);
    memmove(window, window + (m.K - kept) * m.C, 4 * kept * m.C);
    for (int64_t k = kept; k < m.K; ++k) memcpy(window + k * m.C, x + (n - m.K + k) * row, 4 * m.C);
}

// to [C] = silu(convolution) at the end of the window
static void convolve(const Mamba2& m, const float* window, float* to) {
    for (int64_t c = 0; c < m.C; ++c) {
        float sum = m.bias ? m.bias[c] : 0.0f;
        for (int64_t k = 0; k < m.K; ++k) sum = plus(sum, m.kernel[c * m.K + k], window[k * m.C + c]);
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
            const Vec next = moved(some(row + w, n), some(left + w, n), gain, some(scaled + w, n));
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
        float* const window = m.windows + t.slots[n] * m.K * m.C;
        move_on(m, window, given + I, m.width(), 1);
        convolve(m, window, x);
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

// ---- many tokens of a sequence

constexpr int64_t BLOCK = 64;              // tokens between which columns of the state take turns
constexpr int V = REGISTERS == 32 ? 4 : 2;  // vectors of columns

// What a block's tokens are made of
struct Block {
    const Mamba2& m;
    const float* in;  // [n, width], `begun` tokens of the same call before it
    int64_t begun, n;
    float *x, *scaled, *left, *y;  // [n, C], [n, I] each

    const float* given(int64_t t) const { return in + t * m.width(); }

    // As `convolve`, over the inputs where they lie; kernel [K, C]
    void convolve(int64_t t, const float* window, const float* kernel) const {
        float* const to = x + t * m.C;
        for (int64_t c = 0; c < m.C; ++c) to[c] = m.bias ? m.bias[c] : 0.0f;
        for (int64_t k = 0; k < m.K; ++k) {
            const int64_t back = t + k + 1 - m.K;  // in this block
            const float* const from = begun + back < 0 ? window + (m.K + begun + back) * m.C : given(back) + m.I();
            for (int64_t c = 0; c < m.C; ++c) to[c] = plus(to[c], kernel[k * m.C + c], from[c]);
        }
        for (int64_t c = 0; c < m.C; c += L) put_some(to + c, silu(some(to + c, m.C - c)), m.C - c);
    }

    // R tokens from t on, over the columns w .. of a group's states, which are copied to `state` [S, V * L]
    template <int R>
    void tokens(int64_t t, int64_t g, int64_t w, int64_t columns, float* state) const {
        Vec l[R][V], u[R][V], sums[R][V];
        const float *b[R], *c[R];
        const int64_t at_w = g * m.of_group() + w, J = m.G * m.S;
        UNROLL for (int r = 0; r < R; ++r) {
            b[r] = x + (t + r) * m.C + m.I() + g * m.S, c[r] = b[r] + J;
            UNROLL for (int v = 0; v < V; ++v) {
                const int64_t i = (t + r) * m.I() + at_w + v * L, n = std::max<int64_t>(0, columns - v * L);
                l[r][v] = some(left + i, n), u[r][v] = some(scaled + i, n), sums[r][v] = Vec{};
            }
        }
        for (int64_t s = 0; s < m.S; ++s)
            UNROLL for (int v = 0; v < V; ++v) {
                Vec next = at(state + s * V * L + v * L);
                UNROLL for (int r = 0; r < R; ++r) {
                    next = moved(next, l[r][v], b[r][s], u[r][v]);
                    sums[r][v] += c[r][s] * next;
                }
                put(state + s * V * L + v * L, next);
            }
        UNROLL for (int r = 0; r < R; ++r)
            UNROLL for (int v = 0; v < V; ++v)
                if (columns > v * L)
                    put_some(y + (t + r) * m.I() + at_w + v * L, sums[r][v], columns - v * L);
    }

    void columns(int64_t g, int64_t w, float* written) const {
        const int64_t W = m.of_group(), columns = std::min<int64_t>(V * L, W - w);
        Scratch memory(m.S * V * L);
        float *const state = memory.take(m.S * V * L), *const lies = written + g * m.S * W + w;
        memset(state, 0, 4 * m.S * V * L);
        for (int64_t s = 0; s < m.S; ++s) memcpy(state + s * V * L, lies + s * W, 4 * columns);
        int64_t t = 0;
        for (; t + 2 <= n; t += 2) tokens<2>(t, g, w, columns, state);
        for (; t < n; ++t) tokens<1>(t, g, w, columns, state);
        for (int64_t s = 0; s < m.S; ++s) memcpy(lies + s * W, state + s * V * L, 4 * columns);
    }
};

// out [T, I] of T tokens of the sequence in the first slot, in [T, width]
extern "C" void mamba2_scan(const Mamba2* mixer, const float* in, float* out, int64_t T, int64_t threads) {
    const Mamba2& m = *mixer;
    const int64_t I = m.I(), tiles = (m.of_group() + V * L - 1) / (V * L);
    Scratch memory(BLOCK * (m.C + 3 * I) + m.K * m.C + 64);
    float *const kernel = memory.take(m.K * m.C), *const x = memory.take(BLOCK * m.C), *const scaled = memory.take(BLOCK * I);
    float *const left = memory.take(BLOCK * I), *const y = memory.take(BLOCK * I);
    for (int64_t c = 0; c < m.C; ++c)
        for (int64_t k = 0; k < m.K; ++k) kernel[k * m.C + c] = m.kernel[c * m.K + k];
    for (int64_t begun = 0; begun < T; begun += BLOCK) {
        const Block block{m, in + begun * m.width(), begun, std::min(BLOCK, T - begun), x, scaled, left, y};
        share(block.n, threads, [&](int64_t t) {
            block.convolve(t, m.windows, kernel);
            step_sizes(m, block.given(t) + I + m.C, x + t * m.C, scaled + t * I, left + t * I);
        });
        share(m.G * tiles, threads, [&](int64_t i) { block.columns(i / tiles, i % tiles * V * L, m.written); });
        share(block.n, threads, [&](int64_t t) {
            gate(m, block.given(t), x + t * m.C, y + t * I, out + (begun + t) * I);
        });
    }
    move_on(m, m.windows, in + I, m.width(), T);
}
