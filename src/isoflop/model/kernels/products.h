// Rows times a matrix as it lies: tiles of both, held in registers, vectors along the columns, summed up at their end.
//
// A sum takes its columns in one order: lane l of a vector those that are l modulo the vector's width, one after the
// other, then the lanes, halves upon halves. How many rows come, how they are cut, and who computes them changes none.
#pragma once

#include "vectors.h"

constexpr int LINE = 64, OUT = 4;              // bytes of a cache's line; rows of the matrix in a tile
constexpr int MOST = REGISTERS == 32 ? 5 : 2;  // rows in a tile
constexpr int64_t GROUP = 8;                   // rows of the matrix that stay in the first cache while rows pass
constexpr int64_t SPAN = 4096;                 // bytes of each that do; half as many where only two tiles pass
constexpr int64_t AHEAD = 8192;                // bytes that are asked for before they are used, at least

static INLINE uint16_t rounded(float x) {  // to the nearest bf16, of two the even one
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 64);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static INLINE float widened(uint16_t x) {  // a bf16 is the upper half of a float
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

// How numbers of a matrix (W) meet those of rows (X): STEP of them at once. Of rows, what lies beyond the last is zero.
struct Singles {
    typedef float W, X;
    static constexpr int STEP = L;
    static INLINE Vec weights(const W* p, int64_t n) { return some(p, n); }
    static INLINE Vec row(const X* p) { return at(p); }
    static INLINE Vec add(Vec sum, Vec a, Vec b) { return sum + a * b; }
    static INLINE void put(X* to, Vec x) { ::put(to, x); }
};

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512BF16__)
struct Halves {
    typedef uint16_t W, X;
    static constexpr int STEP = 2 * L;
    static INLINE __m512i weights(const W* p, int64_t n) {
        return n >= STEP ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi16((1u << n) - 1, p);
    }
    static INLINE __m512i row(const X* p) { return _mm512_loadu_si512(p); }
    static INLINE Vec add(Vec sum, __m512i a, __m512i b) {
        return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
    }
    static INLINE void put(X* to, Vec x) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh((__m512)x));
    }
};
#else
struct Halves {  // the same numbers, in a float each
    typedef uint16_t W;
    typedef float X;
    static constexpr int STEP = L;
    static INLINE Vec weights(const W* p, int64_t n) {
        typedef uint16_t Short __attribute__((vector_size(2 * L)));
        Short x{};
        memcpy(&x, p, n >= L ? sizeof x : 2 * n);
#if defined(__AVX512F__)
        return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)x), 16);
#else
        return (Vec)(__builtin_convertvector(x, Ints) << 16);
#endif
    }
    static INLINE Vec row(const X* p) { return at(p); }
    static INLINE Vec add(Vec sum, Vec a, Vec b) { return sum + a * b; }
    static INLINE void put(X* to, Vec x) {
        for (int i = 0; i < L; ++i) to[i] = widened(rounded(x[i]));
    }
};
#endif

template <class T>
static INLINE T in_register(T x) {  // gcc would load x anew for each product, and loads would be what takes time
#if defined(__AVX512F__)
    asm("" : "+v"(x));
#endif
    return x;
}

typedef float Four __attribute__((vector_size(16)));
typedef float LooseFour __attribute__((vector_size(16), aligned(4), may_alias));

static INLINE Four totals(const Vec (&x)[OUT]) {
#if defined(__AVX512F__)
    const __m512 a = (__m512)x[0], b = (__m512)x[1], c = (__m512)x[2], d = (__m512)x[3];
    const __m512 ab = _mm512_shuffle_f32x4(a, b, 0x44) + _mm512_shuffle_f32x4(a, b, 0xee);
    const __m512 cd = _mm512_shuffle_f32x4(c, d, 0x44) + _mm512_shuffle_f32x4(c, d, 0xee);
    __m512 sum = _mm512_shuffle_f32x4(ab, cd, 0x88) + _mm512_shuffle_f32x4(ab, cd, 0xdd);
    sum += _mm512_permute_ps(sum, 0x4e);
    sum += _mm512_permute_ps(sum, 0xb1);
    const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
    return (Four)_mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, sum));
#else
    Four sums;
    for (int i = 0; i < OUT; ++i) {
        Vec y = x[i];
        UNROLL for (int half = L / 2; half > 0; half /= 2)
            UNROLL for (int k = 0; k < half; ++k) y[k] += y[k + half];
        sums[i] = y[0];
    }
    return sums;
#endif
}

// Rows, laid out for the purpose, times a matrix.
struct Product {
    const void* x;  // [M, stride], zeros from I on
    int64_t stride;
    const void* weight;       // [O, I]
    const float *bias, *add;  // [O], [M, O], or null; add may be y
    void* y;                  // [M, O], of bf16 if half
    bool half;
    int64_t I, O;
};

static INLINE void store(const Product& p, int64_t m, int64_t o, Four sum, int n) {
    const int64_t at = m * p.O + o;
    Four more{};
    if (p.bias) memcpy(&more, p.bias + o, 4 * n), sum += more;
    if (p.add) memcpy(&more, p.add + at, 4 * n), sum += more;
    if (!p.half) {
        memcpy(static_cast<float*>(p.y) + at, &sum, 4 * n);
        return;
    }
    uint16_t* const y = static_cast<uint16_t*>(p.y) + at;
    for (int i = 0; i < n; ++i) y[i] = rounded(sum[i]);
}

// What is asked for while a tile is computed: some lines a step, and whether into the first cache or the second.
struct Ahead {
    const char *next, *end;
    int64_t lines;
    bool nearest;
};

static INLINE void ask(const char* p, int64_t lines, bool nearest) {
    if (nearest) {
        UNROLL for (int i = 0; i < OUT; ++i) __builtin_prefetch(p + i * LINE, 0, 3);
    } else {
        __builtin_prefetch(p, 0, 2);
        if (lines > 1) __builtin_prefetch(p + LINE, 0, 2);
        if (lines > 2) __builtin_prefetch(p + 2 * LINE, 0, 2), __builtin_prefetch(p + 3 * LINE, 0, 2);
    }
}

// N rows of the matrix from `o` on times R rows from `m` on, columns [from, to); sums begun are `kept` in between.
template <class K, int R, int N>
static void tile(const Product& p, int64_t m, int64_t o, int64_t from, int64_t to, Vec* kept, Ahead& ahead) {
    Vec sums[R][N];
    UNROLL for (int r = 0; r < R; ++r)
        UNROLL for (int i = 0; i < N; ++i) sums[r][i] = from == 0 ? Vec{} : kept[r * N + i];
    const int64_t I = p.I, stride = p.stride;
    const typename K::X* x = static_cast<const typename K::X*>(p.x) + m * stride;
    const typename K::W* w = static_cast<const typename K::W*>(p.weight) + o * I;
    const int64_t lines = ahead.next < ahead.end ? ahead.lines : 0;
    const bool nearest = ahead.nearest;
    const char* next = ahead.next;
    int64_t k = from;
    for (; k + K::STEP <= to; k += K::STEP) {
        if (N == OUT && lines) ask(next, lines, nearest), next += lines * LINE;
        decltype(K::weights(w, 0)) a[N];
        UNROLL for (int i = 0; i < N; ++i) a[i] = in_register(K::weights(w + i * I + k, K::STEP));
        UNROLL for (int r = 0; r < R; ++r) {
            const auto b = in_register(K::row(x + r * stride + k));
            UNROLL for (int i = 0; i < N; ++i) sums[r][i] = K::add(sums[r][i], a[i], b);
        }
    }
    ahead.next = next;
    if (k < to)
        UNROLL for (int i = 0; i < N; ++i)
            UNROLL for (int r = 0; r < R; ++r)
                sums[r][i] = K::add(sums[r][i], K::weights(w + i * I + k, to - k), K::row(x + r * stride + k));
    UNROLL for (int r = 0; r < R; ++r) {
        if (to == I) {
            Vec last[OUT] = {};
            UNROLL for (int i = 0; i < N; ++i) last[i] = sums[r][i];
            store(p, m + r, o, totals(last), N);
        } else {
            UNROLL for (int i = 0; i < N; ++i) kept[r * N + i] = sums[r][i];
        }
    }
}

template <class K, int N>
static void tile_of(int64_t R, const Product& p, int64_t m, int64_t o, int64_t from, int64_t to, Vec* kept,
                    Ahead& ahead) {
    if (R == 1) tile<K, 1, N>(p, m, o, from, to, kept, ahead);
    else if (R == 2 || MOST == 2) tile<K, 2, N>(p, m, o, from, to, kept, ahead);
    else if (R == 3) tile<K, MOST == 2 ? 2 : 3, N>(p, m, o, from, to, kept, ahead);
    else if (R == 4) tile<K, MOST == 2 ? 2 : 4, N>(p, m, o, from, to, kept, ahead);
    else tile<K, MOST, N>(p, m, o, from, to, kept, ahead);
}

// Rows [m, m_end) times rows [o, o_end) of the matrix, GROUP or less.
template <class K>
static void group(const Product& p, int64_t m, int64_t m_end, int64_t o, int64_t o_end, Vec* kept) {
    const int64_t bytes = p.I * sizeof(typename K::W), tiles = (m_end - m + MOST - 1) / MOST;
    const int64_t near = tiles == 2 ? SPAN / 2 : SPAN, spans = tiles == 1 ? 1 : (bytes + near - 1) / near;
    const int64_t span = up((p.I + spans - 1) / spans, K::STEP), size = (o_end - o) * bytes;
    const char* const after = static_cast<const char*>(p.weight) + o * bytes + std::max(size, AHEAD);
    Ahead ahead{after, after + size, tiles == 1 ? OUT : tiles < 4 ? 2 : 1, tiles == 1 && size <= AHEAD};
    for (int64_t from = 0; from < p.I; from += span) {
        const int64_t to = std::min(p.I, from + span);
        Vec* next = kept;
        for (int64_t left = tiles, row = m; left > 0; --left) {
            const int64_t take = (m_end - row + left - 1) / left;
            for (int64_t i = o; i < o_end;) {
                // a single row is met by one stream, which the processor itself fetches ahead
                const int64_t n = m_end - m > 1 && o_end - i >= OUT ? OUT : 1;
                if (n == OUT) tile_of<K, OUT>(take, p, row, i, from, to, next, ahead);
                else tile_of<K, 1>(take, p, row, i, from, to, next, ahead);
                next += take * n, i += n;
            }
            row += take;
        }
    }
}
