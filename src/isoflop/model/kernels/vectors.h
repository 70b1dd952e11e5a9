// Vectors of floats in gcc's own notation, rows of a matrix in aligned memory, and products that stay in registers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
constexpr int L = 16;  // lanes of a vector
constexpr int DOT_VECTORS = 2, ROW_VECTORS = 4, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int L = 8;
constexpr int DOT_VECTORS = 1, ROW_VECTORS = 2, REGISTERS = 16;
#else
constexpr int L = 4;
constexpr int DOT_VECTORS = 1, ROW_VECTORS = 2, REGISTERS = 16;
#endif

typedef float Vec __attribute__((vector_size(4 * L)));
typedef int32_t Ints __attribute__((vector_size(4 * L)));
typedef float Loose __attribute__((vector_size(4 * L), aligned(4), may_alias));  // at any address

#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

constexpr int QB = 64, QV = QB / L;  // queries of a block, and their vectors
constexpr int PANEL = 8;             // keys (or queries) of a register tile
constexpr float LOG2E = 1.44269504088896f;

// ---- vectors

static INLINE Vec splat(float x) { return Vec{} + x; }
static INLINE Vec at(const float* p) { return *reinterpret_cast<const Loose*>(p); }
static INLINE void put(float* p, Vec x) { *reinterpret_cast<Loose*>(p) = x; }

static INLINE Vec some(const float* p, int64_t n) {  // the first n lanes
    if (n >= L) return at(p);
    Vec x{};
    memcpy(&x, p, 4 * n);
    return x;
}

static INLINE Vec larger(Vec a, Vec b) {
#if defined(__AVX512F__)
    return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return a > b ? a : b;
#endif
}

static INLINE Vec polynomial2(Vec r) {  // 2^r for |r| <= 1/2, relative error 1e-7: own minimax fit
    Vec p = 0.0013264727f * r + 0.0096715130f;
    p = p * r + 0.0555073358f;
    p = p * r + 0.2402224243f;
    p = p * r + 0.6931470037f;
    return p * r + 1.0f;
}

static INLINE Vec exp2(Vec x) {
#if defined(__AVX512F__)
    Vec n = (Vec)_mm512_roundscale_ps((__m512)x, 8);
    return (Vec)_mm512_scalef_ps((__m512)polynomial2(x - n), (__m512)n);
#else
    const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds, and leaves the integer in the low bits
    Vec c = larger(x, splat(-126.0f));
    c = c < 126.0f ? c : splat(126.0f);
    Vec n = c + magic;
    Vec y = (Vec)((Ints)polynomial2(c - (n - magic)) + ((Ints)n << 23));
    return x < -126.0f ? Vec{} : (x == x ? y : x);
#endif
}

static INLINE Vec log2(Vec x) {  // of positive numbers: exponent and mantissa as one straight line, then Newton's steps
    Vec y = __builtin_convertvector((Ints)x - 0x3f800000, Vec) * (1.0f / 8388608.0f);
    for (int step = 0; step < 3; ++step) y += LOG2E * (x * exp2(-y) - 1.0f);
    return y;
}

static INLINE Vec tanh(Vec y) {
    Vec z = y * y;
    Vec p = 0.0172414836f * z - 0.0530454926f;
    p = p * z + 0.1332587898f;
    p = p * z - 0.3333314359f;
    Vec near = y + y * z * p;  // |y| < 1/2, relative error 2e-8: own minimax fit
    Vec far = 1.0f - 2.0f / (exp2(y * (2 * LOG2E)) + 1.0f);
    return z < 0.25f ? near : far;
}

static INLINE void transpose(Vec (&x)[L]) {  // log2(L) perfect shuffles of the rows
#if defined(__clang__)
    float y[L][L];
    memcpy(y, x, sizeof y);
    for (int i = 0; i < L; ++i)
        for (int j = 0; j < L; ++j) x[j][i] = y[i][j];
#else
    Ints low, high;
    for (int i = 0; i < L; ++i) {
        low[i] = i / 2 + (i % 2) * L;
        high[i] = low[i] + L / 2;
    }
    UNROLL for (int step = 1; step < L; step *= 2) {
        Vec y[L];
        UNROLL for (int i = 0; i < L / 2; ++i) {
            y[2 * i] = __builtin_shuffle(x[i], x[i + L / 2], low);
            y[2 * i + 1] = __builtin_shuffle(x[i], x[i + L / 2], high);
        }
        UNROLL for (int i = 0; i < L; ++i) x[i] = y[i];
    }
#endif
}

// ---- memory

static INLINE int64_t down(int64_t x, int64_t to) { return x / to * to; }
static INLINE int64_t up(int64_t x, int64_t to) { return down(x + to - 1, to); }

struct Scratch {  // one allocation, handed out in aligned pieces
    char *memory, *next;
    explicit Scratch(int64_t floats) {
        memory = next = static_cast<char*>(std::aligned_alloc(64, up(floats * 4, 64)));
        if (!memory) std::abort();
    }
    ~Scratch() { std::free(memory); }
    Scratch(const Scratch&) = delete;
    float* take(int64_t floats) {
        char* piece = next;
        next += up(floats * 4, 64);
        return reinterpret_cast<float*>(piece);
    }
};

// n rows next to each other, each padded with zeros to `width`.
static void copy_rows(float* to, int64_t width, const float* from, int64_t stride, int64_t n, int64_t columns) {
    for (int64_t i = 0; i < n; ++i)
        for (int64_t c = 0; c < width; c += L) put(to + i * width + c, some(from + i * stride + c, columns - c));
}

// A block's rows, transposed and scaled: to[c][row]; zeros beyond n rows. Also copied as copy_rows does, if asked.
static void copy_transposed(float* to, float* rows, int64_t width, const float* from, int64_t stride, int64_t n,
                            int64_t columns, float scale) {
    for (int64_t r0 = 0; r0 < QB; r0 += L)
        for (int64_t c = 0; c < width; c += L) {
            Vec x[L];
            UNROLL for (int i = 0; i < L; ++i) {
                x[i] = r0 + i < n ? some(from + (r0 + i) * stride + c, columns - c) : Vec{};
                if (rows) put(rows + (r0 + i) * width + c, x[i]);
                x[i] *= scale;
            }
            transpose(x);
            UNROLL for (int i = 0; i < L; ++i) put(to + (c + i) * QB + r0, x[i]);
        }
}

static void write_rows(float* to, int64_t stride, const float* from, int64_t width, int64_t n, int64_t columns,
                       float scale) {
    for (int64_t i = 0; i < n; ++i) {
        int64_t c = 0;
        for (; c + L <= columns; c += L) put(to + i * stride + c, at(from + i * width + c) * scale);
        for (; c < columns; ++c) to[i * stride + c] = from[i * width + c] * scale;
    }
}

// ---- the two products in registers

// sums[i][v] = sum over d of rows[i][d] * columns[d][v]
template <int V>
static INLINE void dot_tile(Vec (&sums)[PANEL][V], const float* rows, int64_t width, const float* columns,
                            int64_t depth) {
    UNROLL for (int i = 0; i < PANEL; ++i)
        UNROLL for (int v = 0; v < V; ++v) sums[i][v] = Vec{};
    for (int64_t d = 0; d < depth; ++d) {
        Vec x[V];
        UNROLL for (int v = 0; v < V; ++v) x[v] = at(columns + d * QB + v * L);
        UNROLL for (int i = 0; i < PANEL; ++i)
            UNROLL for (int v = 0; v < V; ++v) sums[i][v] += rows[i * width + d] * x[v];
    }
}

template <int V>
static INLINE void store_tile(float* to, const Vec (&sums)[PANEL][V]) {
    UNROLL for (int i = 0; i < PANEL; ++i)
        UNROLL for (int v = 0; v < V; ++v) put(to + i * QB + v * L, sums[i][v]);
}

// to[i][v] = to[i][v] * factors[i] + sum over j < n of weights[j * STEP + i * ROW] * rows[j][v], for R rows
template <int R, int V, int STEP, int ROW>
static void row_tile(float* to, const float* weights, const float* rows, int64_t width, int64_t n,
                     const float* factors) {
    Vec sums[R][V];
    UNROLL for (int i = 0; i < R; ++i)
        UNROLL for (int v = 0; v < V; ++v) sums[i][v] = at(to + i * width + v * L) * (factors ? factors[i] : 1.0f);
    for (int64_t j = 0; j < n; ++j) {
        Vec x[V];
        UNROLL for (int v = 0; v < V; ++v) x[v] = at(rows + j * width + v * L);
        UNROLL for (int i = 0; i < R; ++i)
            UNROLL for (int v = 0; v < V; ++v) sums[i][v] += weights[j * STEP + i * ROW] * x[v];
    }
    UNROLL for (int i = 0; i < R; ++i)
        UNROLL for (int v = 0; v < V; ++v) put(to + i * width + v * L, sums[i][v]);
}

// PANEL rows of any width, cut into tiles that fit the registers
template <int STEP, int ROW>
static void add_products(float* to, const float* weights, const float* rows, int64_t width, int64_t n,
                         const float* factors = nullptr) {
    constexpr int HALF = PANEL / 2;
    int64_t vectors = width / L;
    for (int64_t pieces = (vectors + ROW_VECTORS - 1) / ROW_VECTORS, c = 0; pieces > 0; --pieces) {
        int64_t take = (vectors + pieces - 1) / pieces;
        vectors -= take;
        float* out = to + c;
        const float* in = rows + c;
        c += take * L;
        if (take == 1) {
            row_tile<PANEL, 1, STEP, ROW>(out, weights, in, width, n, factors);
        } else if (take == 2 && REGISTERS == 32) {
            row_tile<PANEL, 2, STEP, ROW>(out, weights, in, width, n, factors);
        } else if (take == 3) {
            row_tile<PANEL, 3, STEP, ROW>(out, weights, in, width, n, factors);
        } else {
            for (int half = 0; half < PANEL; half += HALF) {
                const float* w = weights + half * ROW;
                const float* f = factors ? factors + half : nullptr;
                if (take == 2)
                    row_tile<HALF, 2, STEP, ROW>(out + half * width, w, in, width, n, f);
                else
                    row_tile<HALF, 4, STEP, ROW>(out + half * width, w, in, width, n, f);
            }
        }
    }
}
