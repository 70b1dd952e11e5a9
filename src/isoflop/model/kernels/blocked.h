// Queries a block at a time over keys and values that lie next to each other. Method: online softmax over blocks of keys
// (Milakov & Gimelshein 2018; Dao et al. 2022).
//
// A block is 64 queries. Scores lie transposed, P[key][query]: lanes are queries, so maxima, sums and masks need no
// step across lanes, and the other products read P one element at a time, which no layout makes slow. Everything is in
// powers of two: log2(e) is folded into the scale, and `lse` is log2 of the softmax's denominator.
#pragma once

#include "attention.h"


constexpr int64_t KB = 64;  // keys of a block

struct Block {  // QB queries: `n` of them there, the first at `position`; keys by their absolute place
    int64_t position, n;
    int64_t first[QV], end[QV];  // keys that a vector of queries sees, rounded to whole panels

    Block(const Scores& scores, int64_t position, int64_t n) : position(position), n(n) {
        constexpr int64_t GROUP = L > PANEL ? L : PANEL;  // queries that one register tile reads have keys in common
        for (int v = 0; v < QV; ++v) {
            int64_t low = down(v * L, GROUP);
            first[v] = low < n ? down(scores.first_key(position + low), PANEL) : 0;
            end[v] = low < n ? up(position + std::min(n, low + GROUP), PANEL) : 0;
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
static __attribute__((noinline)) void finish_scores(float* tile, float* bend, const Scores& s, const Block& block,
                                                    int64_t key, int v) {
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

struct Seen {  // keys [..][D16] and values [..][E16] of a head, in whole vectors, from position `base` on
    const float *k, *v;
    int64_t base;  // a multiple of PANEL
};

// One at work; of the call it reads widths and what Scores does.
struct Queries {
    const Call& c;
    int64_t D16, E16;
    Scratch memory;
    float *qT, *p, *out;

    Queries(const Call& c)
        : c(c),
          D16(up(c.D, L)),
          E16(up(c.E, L)),
          memory(QB * (D16 + E16 + KB)),
          qT(memory.take(QB * D16)),
          p(memory.take(QB * KB)),
          out(memory.take(QB * E16)) {}

    // n <= QB queries of a head, the first at `position`, into rows of `to`; lse [n], or null
    void block(int64_t head, const Seen& seen, int64_t position, int64_t n, const float* q, int64_t q_row, float* to,
               int64_t to_row, float* lse_to) {
        Scores s(c, head);
        Block block(s, position, n);
        copy_transposed(qT, nullptr, D16, q, q_row, n, c.D, s.scale);
        memset(out, 0, 4 * QB * E16);
        Vec top[QV], sum[QV];  // a sink is a key without a value, seen first
        for (int w = 0; w < QV; ++w) {
            top[w] = splat(c.sinks ? c.sinks[head] * LOG2E : MASKED);
            sum[w] = splat(c.sinks ? 1.0f : 0.0f);
        }
        for (int64_t key = block.first[0]; key < block.last_end(); key += KB) {
            int64_t end = std::min(key + KB, block.last_end());
            alignas(64) float shrink[QB];
            softmax(s, block, key, end, seen, top, sum, shrink);
            for (int64_t r = 0; r < n; r += PANEL) {
                int64_t from = std::max(key, s.first_key(position + r));
                int64_t to_key = std::min(end, position + std::min<int64_t>(r + PANEL, n));
                const float *weights = p + (from - key) * QB + r, *values = seen.v + (from - seen.base) * E16;
                if (from < to_key) add_products<QB, 1>(out + r * E16, weights, values, E16, to_key - from, shrink + r);
            }
        }
        alignas(64) float lse[QB], inverse[QB];
        for (int w = 0; w < QV; ++w) {
            put(lse + w * L, top[w] + log2(sum[w]));
            put(inverse + w * L, 1.0f / sum[w]);
        }
        if (lse_to) memcpy(lse_to, lse, 4 * n);
        for (int64_t i = 0; i < n; ++i) write_rows(to + i * to_row, 0, out + i * E16, 0, 1, c.E, inverse[i]);
    }

    // p[key][query] = 2^(score - top) for the new top; what was summed before must shrink to it
    void softmax(const Scores& s, const Block& block, int64_t begin, int64_t end, const Seen& seen, Vec (&top)[QV],
                 Vec (&sum)[QV], float* shrink) {
        Vec most[QV];
        for (int w = 0; w < QV; ++w) most[w] = top[w];
        for (int w = 0; w < QV; w += DOT_VECTORS)
            for (int64_t key = begin; key < end; key += PANEL) {
                bool all = true;
                for (int i = 0; i < DOT_VECTORS; ++i) all = all && block.sees(w + i, key);
                if (all)
                    scores<DOT_VECTORS>(s, block, begin, key, seen, w, most);
                else
                    for (int i = 0; i < DOT_VECTORS; ++i)
                        if (block.sees(w + i, key)) scores<1>(s, block, begin, key, seen, w + i, most);
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
    INLINE void scores(const Scores& s, const Block& block, int64_t begin, int64_t key, const Seen& seen, int w,
                       Vec (&most)[QV]) {
        float* tile = p + (key - begin) * QB + w * L;
        Vec sums[PANEL][V];
        dot_tile<V>(sums, seen.k + (key - seen.base) * D16, D16, qT + w * L, c.D);
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
