// Causal attention in fp32, forward and backward. Method: online softmax over blocks of keys (Milakov & Gimelshein 2018;
// Dao et al. 2022, 2023: the backward recomputes the probabilities from the saved logarithm of their sum).
//
// B batch, T query, S key, H query head, K key/value head, D width of queries and keys, E width of values.
// A block is 64 queries. Scores lie transposed, P[key][query]: lanes are queries, so maxima, sums and masks need no step
// across lanes, and the four other products read P one element at a time, which no layout makes slow. Rows are copied
// next to each other (and padded to whole vectors) first: strided rows of several heads evict each other from the cache.
// Everything is in powers of two: log2(e) is folded into the scale, and `lse` is log2 of the softmax's denominator.
// No sum depends on the number of threads.

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
constexpr int64_t CHUNK = 1024;      // queries of a forward task
constexpr float MASKED = -1e30f;     // finite: infinity minus infinity is not a number
constexpr float LOG2E = 1.44269504088896f;

#ifndef KEY_BLOCK
#define KEY_BLOCK 64
#endif
constexpr int64_t KB = KEY_BLOCK;  // keys of a block

// The caller's arguments, in this order (attention.py packs the same). Strides in floats; missing tensors are null.
struct Strides {
    int64_t batch, row, head;
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
        for (int64_t c = 0; c < width; c += L) put(to + i * width + c, some(from + i * stride + c, std::max<int64_t>(columns - c, 0)));
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

static void write_rows(float* to, int64_t stride, const float* from, int64_t width, int64_t n, int64_t columns, float scale) {
    for (int64_t i = 0; i < n; ++i) {
        int64_t c = 0;
        for (; c + L <= columns; c += L) put(to + i * stride + c, at(from + i * width + c) * scale);
        for (; c < columns; ++c) to[i * stride + c] = from[i * width + c] * scale;
    }
}

// ---- the two products in registers

// sums[i][v] = sum over d of rows[i][d] * columns[d][v]
template <int V>
static INLINE void dot_tile(Vec (&sums)[PANEL][V], const float* rows, int64_t width, const float* columns, int64_t depth) {
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
static void row_tile(float* to, const float* weights, const float* rows, int64_t width, int64_t n, const float* factors) {
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

struct Block {  // QB queries: `n` of them there, the first at `position`; keys by their absolute place
    int64_t position, n;
    int64_t first[QV], end[QV];  // keys that a vector of queries sees, rounded to whole panels

    Block(const Scores& scores, int64_t position, int64_t n) : position(position), n(n) {
        for (int v = 0; v < QV; ++v) {
            bool there = v * L < n;
            first[v] = there ? down(scores.first_key(position + v * L), PANEL) : 0;
            end[v] = there ? up(position + std::min<int64_t>(n, (v + 1) * L), PANEL) : 0;
        }
    }
    int64_t last_end() const { return up(position + n, PANEL); }
    bool sees(int v, int64_t key) const { return first[v] <= key && key < end[v]; }
};

// Whether a tile's scores are the products as they are: nothing to cap, and every query sees every key.
template <int V>
static INLINE bool is_plain(const Scores& s, const Block& block, int64_t key, int v) {
    int64_t low = block.position + v * L;
    return s.plain && key + PANEL - 1 <= low && low + V * L <= s.end_position(key);
}

// The scores of PANEL keys from `key` on with the queries of V vectors from v on, out of their products; in place,
// [key][query]. With a cap, `bend` gets its derivative if asked.
template <int V>
static __attribute__((noinline)) void finish_scores(float* tile, float* bend, const Scores& s, const Block& block, int64_t key, int v) {
    Ints lane;
    for (int i = 0; i < L; ++i) lane[i] = i;
    for (int i = 0; i < PANEL; ++i) {
        int32_t ahead = static_cast<int32_t>(block.position + v * L - key - i);  // of the first query before the key
        int32_t length = static_cast<int32_t>(std::min<int64_t>(s.end_position(key + i) - key - i, 1 << 30));
        for (int w = 0; w < V; ++w) {
            int place = i * QB + w * L;
            Ints distance = lane + (ahead + w * L);
            Vec x = at(tile + place);
            if (s.cap != 0) {
                x = tanh(x);
                if (bend) put(bend + place, 1.0f - x * x);
                x *= s.cap;
            }
            if (s.slope != 0) x -= s.slope * __builtin_convertvector(distance, Vec);
            put(tile + place, (distance >= 0) & (distance < length) ? x : splat(MASKED));
        }
    }
}

// ---- forward

struct Forward {
    const Call& c;
    int64_t D16, E16, capacity;  // padded widths; keys
    Scratch memory;
    float *k, *v, *qT, *p, *out;

    Forward(const Call& c)
        : c(c),
          D16(up(c.D, L)),
          E16(up(c.E, L)),
          capacity(up(c.start + c.T, PANEL) + PANEL),
          memory(capacity * (D16 + E16) + QB * (D16 + E16 + KB)),
          k(memory.take(capacity * D16)),
          v(memory.take(capacity * E16)),
          qT(memory.take(QB * D16)),
          p(memory.take(QB * KB)),
          out(memory.take(QB * E16)) {}

    // The heads of one key/value head, for at most CHUNK queries
    void task(int64_t batch, int64_t kv, int64_t t0, int64_t t1) {
        int64_t base = down(Scores(c, 0).first_key(c.start + t0), PANEL), keys = c.start + t1 - base;
        copy_rows(k, D16, c.k + batch * c.ks.batch + kv * c.ks.head + base * c.ks.row, c.ks.row, keys, c.D);
        copy_rows(v, E16, c.v + batch * c.vs.batch + kv * c.vs.head + base * c.vs.row, c.vs.row, keys, c.E);
        memset(k + keys * D16, 0, 4 * (up(keys, PANEL) - keys) * D16);
        for (int64_t head = kv * (c.H / c.K); head < (kv + 1) * (c.H / c.K); ++head)
            for (int64_t t = t0; t < t1; t += QB) queries(batch, head, t, std::min<int64_t>(QB, t1 - t), base);
    }

    void queries(int64_t batch, int64_t head, int64_t t, int64_t n, int64_t base) {
        Scores s(c, head);
        Block block(s, c.start + t, n);
        copy_transposed(qT, nullptr, D16, c.q + batch * c.qs.batch + t * c.qs.row + head * c.qs.head, c.qs.row, n, c.D, s.scale);
        memset(out, 0, 4 * QB * E16);
        Vec top[QV], sum[QV];  // a sink is a key without a value, seen first
        for (int w = 0; w < QV; ++w) {
            top[w] = splat(c.sinks ? c.sinks[head] * LOG2E : MASKED);
            sum[w] = splat(c.sinks ? 1.0f : 0.0f);
        }
        for (int64_t key = block.first[0]; key < block.last_end(); key += KB) {
            int64_t end = std::min(key + KB, block.last_end());
            alignas(64) float shrink[QB];
            softmax(s, block, key, end, base, top, sum, shrink);
            for (int64_t r = 0; r < n; r += PANEL) {
                int64_t from = std::max(key, s.first_key(block.position + r));
                int64_t to = std::min(end, block.position + std::min<int64_t>(r + PANEL, n));
                if (from < to)
                    add_products<QB, 1>(out + r * E16, p + (from - key) * QB + r, v + (from - base) * E16, E16, to - from, shrink + r);
            }
        }
        alignas(64) float lse[QB], inverse[QB];
        for (int w = 0; w < QV; ++w) {
            put(lse + w * L, top[w] + log2(sum[w]));
            put(inverse + w * L, 1.0f / sum[w]);
        }
        memcpy(c.lse + (batch * c.H + head) * c.T + t, lse, 4 * n);
        for (int64_t i = 0; i < n; ++i)
            write_rows(c.out + ((batch * c.T + t + i) * c.H + head) * c.E, 0, out + i * E16, 0, 1, c.E, inverse[i]);
    }

    // p[key][query] = 2^(score - top) for the new top; what was summed before must shrink to it
    void softmax(const Scores& s, const Block& block, int64_t begin, int64_t end, int64_t base, Vec (&top)[QV], Vec (&sum)[QV],
                 float* shrink) {
        Vec most[QV];
        for (int w = 0; w < QV; ++w) most[w] = top[w];
        for (int w = 0; w < QV; w += DOT_VECTORS)
            for (int64_t key = begin; key < end; key += PANEL) {
                bool all = true;
                for (int i = 0; i < DOT_VECTORS; ++i) all = all && block.sees(w + i, key);
                if (all)
                    scores<DOT_VECTORS>(s, block, begin, key, base, w, most);
                else
                    for (int i = 0; i < DOT_VECTORS; ++i)
                        if (block.sees(w + i, key)) scores<1>(s, block, begin, key, base, w + i, most);
            }
        for (int w = 0; w < QV; ++w) {
            Vec less = exp2(top[w] - most[w]), total = sum[w] * less;
            put(shrink + w * L, less);
            float* column = p + w * L;
            for (int64_t key = std::max(begin, block.first[w]); key < std::min(end, block.end[w]); key += 2) {
                float* at_key = column + (key - begin) * QB;
                Vec a = exp2(at(at_key) - most[w]), b = exp2(at(at_key + QB) - most[w]);
                put(at_key, a);
                put(at_key + QB, b);
                total += a + b;
            }
            sum[w] = total;
            top[w] = most[w];
        }
    }

    template <int V>
    INLINE void scores(const Scores& s, const Block& block, int64_t begin, int64_t key, int64_t base, int w, Vec (&most)[QV]) {
        float* tile = p + (key - begin) * QB + w * L;
        Vec sums[PANEL][V];
        dot_tile<V>(sums, k + (key - base) * D16, D16, qT + w * L, c.D);
        store_tile<V>(tile, sums);
        bool plain = is_plain<V>(s, block, key, w);
        if (!plain) finish_scores<V>(tile, nullptr, s, block, key, w);
        UNROLL for (int v = 0; v < V; ++v) {
            Vec m = most[w + v];
            if (plain) {
                UNROLL for (int i = 0; i < PANEL; ++i) m = larger(m, sums[i][v]);
            } else {
                UNROLL for (int i = 0; i < PANEL; ++i) m = larger(m, at(tile + i * QB + v * L));
            }
            most[w + v] = m;
        }
    }
};

// ---- backward

struct Backward {
    const Call& c;
    int64_t D16, E16, base, keys;  // padded widths; the first key that is seen, rounded to a panel; keys from there
    Scratch memory;
    float *k, *v, *dk, *dv, *q, *qT, *dq, *grad, *gradT, *p, *ds, *bend;
    alignas(64) float lse[QB], delta[QB];

    Backward(const Call& c)
        : c(c),
          D16(up(c.D, L)),
          E16(up(c.E, L)),
          base(down(Scores(c, 0).first_key(c.start), PANEL)),
          keys(c.start + c.T - base),
          memory(2 * up(keys, PANEL) * (D16 + E16) + QB * (3 * D16 + 2 * E16) + 3 * QB * KB),
          k(rows(D16)),
          v(rows(E16)),
          dk(rows(D16)),
          dv(rows(E16)),
          q(memory.take(QB * D16)),
          qT(memory.take(QB * D16)),
          dq(memory.take(QB * D16)),
          grad(memory.take(QB * E16)),
          gradT(memory.take(QB * E16)),
          p(memory.take(QB * KB)),
          ds(memory.take(QB * KB)),
          bend(c.softcap > 0 ? memory.take(QB * KB) : nullptr) {}

    float* rows(int64_t width) { return memory.take(up(keys, PANEL) * width); }

    // One key/value head with all its queries
    void task(int64_t batch, int64_t kv) {
        int64_t more = up(keys, PANEL) - keys;
        copy_rows(k, D16, c.k + batch * c.ks.batch + kv * c.ks.head + base * c.ks.row, c.ks.row, keys, c.D);
        copy_rows(v, E16, c.v + batch * c.vs.batch + kv * c.vs.head + base * c.vs.row, c.vs.row, keys, c.E);
        memset(k + keys * D16, 0, 4 * more * D16);
        memset(v + keys * E16, 0, 4 * more * E16);
        memset(dk, 0, 4 * (keys + more) * D16);
        memset(dv, 0, 4 * (keys + more) * E16);
        for (int64_t head = kv * (c.H / c.K); head < (kv + 1) * (c.H / c.K); ++head) {
            double sink = 0;
            for (int64_t t = 0; t < c.T; t += QB) sink += queries(batch, head, t, std::min<int64_t>(QB, c.T - t));
            if (c.sinks) c.dsinks[batch * c.H + head] = static_cast<float>(sink);
        }
        give(c.dk, c.dks, batch, kv, dk, D16, c.D, static_cast<float>(c.scale));
        give(c.dv, c.dvs, batch, kv, dv, E16, c.E, 1.0f);
    }

    void give(float* to, const Strides& strides, int64_t batch, int64_t kv, const float* from, int64_t width, int64_t columns,
              float scale) {
        to += batch * strides.batch + kv * strides.head;
        for (int64_t i = 0; i < base; ++i) memset(to + i * strides.row, 0, 4 * columns);
        write_rows(to + base * strides.row, strides.row, from, width, keys, columns, scale);
    }

    // A block of queries; returns its part of the sink's gradient
    double queries(int64_t batch, int64_t head, int64_t t, int64_t n) {
        Scores s(c, head);
        Block block(s, c.start + t, n);
        const float* out = c.out + ((batch * c.T + t) * c.H + head) * c.E;
        copy_transposed(qT, q, D16, c.q + batch * c.qs.batch + t * c.qs.row + head * c.qs.head, c.qs.row, n, c.D, s.scale);
        copy_transposed(gradT, grad, E16, c.grad + batch * c.gs.batch + t * c.gs.row + head * c.gs.head, c.gs.row, n, c.E, 1.0f);
        memset(dq, 0, 4 * QB * D16);
        memset(lse, 0, sizeof lse);
        memcpy(lse, c.lse + (batch * c.H + head) * c.T + t, 4 * n);
        find_delta(out, n);
        for (int64_t key = block.first[0]; key < block.last_end(); key += KB) {
            int64_t end = std::min(key + KB, block.last_end());
            weights(s, block, key, end);
            to_keys(s, block, key, end);
            to_queries(s, block, key, end);
        }
        write_rows(c.dq + batch * c.dqs.batch + t * c.dqs.row + head * c.dqs.head, c.dqs.row, dq, D16, n, c.D,
                   static_cast<float>(c.scale));
        return c.sinks ? sink_gradient(c.sinks[head] * LOG2E, n) : 0;
    }

    // delta[query] = out . grad = sum over keys of p * dp
    void find_delta(const float* out, int64_t n) {
        for (int64_t r = 0; r < QB; r += L) {
            Vec x[L], total{};
            UNROLL for (int i = 0; i < L; ++i) {
                x[i] = Vec{};
                if (r + i < n)
                    for (int64_t e = 0; e < c.E; e += L) x[i] += some(out + (r + i) * c.H * c.E + e, c.E - e) * at(grad + (r + i) * E16 + e);
            }
            transpose(x);
            UNROLL for (int i = 0; i < L; ++i) total += x[i];
            put(delta + r, total);
        }
    }

    double sink_gradient(float sink, int64_t n) {
        double total = 0;
        for (int64_t r = 0; r < n; r += L) {
            Vec x = exp2(sink - at(lse + r)) * at(delta + r);
            for (int64_t i = 0; i < std::min<int64_t>(L, n - r); ++i) total -= x[i];
        }
        return total;
    }

    // p and ds of a block, both [key][query]
    void weights(const Scores& s, const Block& block, int64_t begin, int64_t end) {
        for (int w = 0; w < QV; w += DOT_VECTORS)
            for (int64_t key = begin; key < end; key += PANEL) {
                bool all = true;
                for (int i = 0; i < DOT_VECTORS; ++i) all = all && block.sees(w + i, key);
                if (all)
                    weight_tile<DOT_VECTORS>(s, block, begin, key, w);
                else
                    for (int i = 0; i < DOT_VECTORS; ++i)
                        if (block.sees(w + i, key)) weight_tile<1>(s, block, begin, key, w + i);
            }
    }

    template <int V>
    INLINE void weight_tile(const Scores& s, const Block& block, int64_t begin, int64_t key, int w) {
        int64_t place = (key - begin) * QB + w * L;
        float *tile = p + place, *slope = bend ? bend + place : nullptr;
        Vec sums[PANEL][V];
        dot_tile<V>(sums, k + (key - base) * D16, D16, qT + w * L, c.D);
        store_tile<V>(tile, sums);
        if (!is_plain<V>(s, block, key, w)) finish_scores<V>(tile, slope, s, block, key, w);
        UNROLL for (int i = 0; i < PANEL; ++i)
            UNROLL for (int v = 0; v < V; ++v) put(tile + i * QB + v * L, exp2(at(tile + i * QB + v * L) - at(lse + (w + v) * L)));
        dot_tile<V>(sums, this->v + (key - base) * E16, E16, gradT + w * L, c.E);
        UNROLL for (int i = 0; i < PANEL; ++i)
            UNROLL for (int v = 0; v < V; ++v) {
                Vec x = at(tile + i * QB + v * L) * (sums[i][v] - at(delta + (w + v) * L));
                put(ds + place + i * QB + v * L, slope ? x * at(slope + i * QB + v * L) : x);
            }
    }

    void to_keys(const Scores& s, const Block& block, int64_t begin, int64_t end) {
        for (int64_t key = begin; key < end; key += PANEL) {
            int64_t from = std::max<int64_t>(key - block.position, 0);
            int64_t to = std::min(s.end_position(key + PANEL - 1) - block.position, block.n);
            if (from >= to) continue;
            int64_t place = (key - begin) * QB + from, row = key - base;
            add_products<1, QB>(dv + row * E16, p + place, grad + from * E16, E16, to - from);
            add_products<1, QB>(dk + row * D16, ds + place, q + from * D16, D16, to - from);
        }
    }

    void to_queries(const Scores& s, const Block& block, int64_t begin, int64_t end) {
        for (int64_t r = 0; r < block.n; r += PANEL) {
            int64_t from = std::max(begin, s.first_key(block.position + r));
            int64_t to = std::min(end, block.position + std::min<int64_t>(r + PANEL, block.n));
            if (from < to) add_products<QB, 1>(dq + r * D16, ds + (from - begin) * QB + r, k + (from - base) * D16, D16, to - from);
        }
    }
};

// ---- entries

template <class Worker, class Task>
static void share(const Call& c, int64_t tasks, const Task& task) {
    int threads = static_cast<int>(std::min(c.threads, tasks));
    if (threads <= 1) {
        Worker worker(c);
        for (int64_t i = 0; i < tasks; ++i) task(worker, i);
        return;
    }
#pragma omp parallel num_threads(threads)
    {
        Worker worker(c);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < tasks; ++i) task(worker, i);
    }
}

extern "C" void attention_forward(const Call* c) {
    int64_t chunks = (c->T + CHUNK - 1) / CHUNK;
    share<Forward>(*c, c->B * c->K * chunks, [&](Forward& worker, int64_t i) {
        int64_t t = i % chunks * CHUNK;
        worker.task(i / chunks / c->K, i / chunks % c->K, t, std::min(t + CHUNK, c->T));
    });
}

extern "C" void attention_backward(const Call* c) {
    share<Backward>(*c, c->B * c->K, [&](Backward& worker, int64_t i) { worker.task(i / c->K, i % c->K); });
}
