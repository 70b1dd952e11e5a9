// What a token sees of its sequence's pages, read in place, once for all heads that share it. Tokens are met by stretches;
// each leaves a head's sums under its own top, and these are folded in order: threads may share the stretches of one row,
// and no bit depends on who read which.
//
// A row is one token. N row, H query head, K key/value head, D width of queries and keys, E width of values.
#pragma once

#include <type_traits>

#include "turn.h"

constexpr int MOST = 4;           // heads of a unit
constexpr int64_t STRETCH = 512;  // tokens whose weights are kept at a time, in a cache nearby
constexpr int64_t RUN = L;        // tokens next to each other that meet the heads of a unit
constexpr int64_t AHEAD = 16384;   // bytes from those in work to those that are fetched, at least

static INLINE void totals(const Vec (&x)[4], float* to) {
#if defined(__AVX512F__)
    __m256 half[4];
    UNROLL for (int i = 0; i < 4; ++i) {
        __m512 whole = (__m512)x[i];
        half[i] = _mm512_castps512_ps256(whole) + _mm512_castps512_ps256(_mm512_shuffle_f32x4(whole, whole, 0x4e));
    }
    __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(half[0], half[1]), _mm256_hadd_ps(half[2], half[3]));
    _mm_storeu_ps(to, _mm256_castps256_ps128(sums) + _mm256_extractf128_ps(sums, 1));
#else
    for (int i = 0; i < 4; ++i) to[i] = total(x[i]);
#endif
}

#if defined(__AVX512F__)
// Four vectors to one: lane i of each quarter is the sum of x[i]'s lanes of that quarter
static INLINE Vec quarters(const Vec (&x)[4]) {
    const __m512 a = (__m512)x[0], b = (__m512)x[1], c = (__m512)x[2], d = (__m512)x[3];
    const __m512d low = (__m512d)(_mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b));
    const __m512d high = (__m512d)(_mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d));
    return (Vec)(__m512)_mm512_unpacklo_pd(low, high) + (Vec)(__m512)_mm512_unpackhi_pd(low, high);
}

// Four of those to the totals of sixteen
static INLINE Vec wholes(const Vec (&x)[4]) {
    const __m512 a = (__m512)x[0], b = (__m512)x[1], c = (__m512)x[2], d = (__m512)x[3];
    const __m512 low = _mm512_shuffle_f32x4(a, b, 0x44) + _mm512_shuffle_f32x4(a, b, 0xee);
    const __m512 high = _mm512_shuffle_f32x4(c, d, 0x44) + _mm512_shuffle_f32x4(c, d, 0xee);
    return (Vec)_mm512_shuffle_f32x4(low, high, 0x88) + (Vec)_mm512_shuffle_f32x4(low, high, 0xdd);
}
#endif

// Against gcc's will, which reads anew from memory at each use: more loads than products
static INLINE Vec held(Vec x) {
#if defined(__AVX512F__)
    asm("" : "+v"(x));
#endif
    return x;
}

// Heads that share keys, up to MOST of them, are a unit; a task reads a stretch once for several units of a row, as their
// keys lie next to each other.
template <class Stored>
struct Reader {
    static constexpr bool SCALED = Stored::GROUP > 0;
    static constexpr int PAIRS = SCALED && Stored::GROUP < 4 * L ? 1 : 2;  // of vectors, all of one group

    const Rows& c;
    const Call asked;
    const int64_t group, parts, units, width, cell;  // cell: floats that a head's stretch leaves: its sums, then top and sum
    const int64_t step;                       // tokens from those in work to those that are fetched: whole pages
    Scratch memory;
    float *q, *p, *scales;  // [units][MOST][width], [units][MOST][STRETCH], [groups][RUN]

    explicit Reader(const Rows& c, int64_t size)
        : c(c),
          asked(call_of(c)),
          group(c.H / c.K),
          parts(parts_of(c)),
          units(c.K * parts),
          width(up(c.D, L)),
          cell(cell_of(c)),
          step(up(AHEAD / std::max<int64_t>(1, keys(0).place_bytes()), c.page)),
          memory(size * MOST * (width + STRETCH) + up(c.D, 32) / 32 * RUN),
          q(memory.take(size * MOST * width)),
          p(memory.take(size * MOST * STRETCH)),
          scales(memory.take(up(c.D, 32) / 32 * RUN)) {}

    static int64_t parts_of(const Rows& c) { return (c.H / c.K + MOST - 1) / MOST; }
    static int64_t cell_of(const Rows& c) { return up(c.E, L) + L; }

    int64_t head_of(int64_t unit) const { return parts == 1 ? unit : unit / parts; }  // of keys
    int64_t before(int64_t unit) const { return (unit - head_of(unit) * parts) * MOST; }  // heads of the same keys
    int64_t first_head(int64_t unit) const { return head_of(unit) * group + before(unit); }
    int64_t heads(int64_t unit) const { return std::min<int64_t>(MOST, group - before(unit)); }
    Stored keys(int64_t unit) const { return Stored(c.keys, c.key_scales, c.K, c.D, head_of(unit)); }
    Stored values(int64_t unit) const {
        return c.values ? Stored(c.values, c.value_scales, c.K, c.E, head_of(unit)) : keys(unit);
    }

    // Units from .. to - 1 of a row meet n tokens from `begin` on; cells [H][cell] of this stretch
    void stretch(int64_t row, int64_t begin, int64_t n, int64_t from, int64_t to, float* cells) {
        const Where& w = c.where[row];
        for (int64_t u = from; u < to; ++u)
            for (int64_t i = 0; i < heads(u); ++i) {
                float* of = q + ((u - from) * MOST + i) * width;
                turn(of, c.q + row * c.q_row + (first_head(u) + i) * c.D, c, c.q_norm, row);
                if (Stored::EVEN_ODD) apart(of, c.D);
                std::fill_n(cells + (first_head(u) + i) * cell, cell, 0.0f);
            }
        along(w.table, begin, n, [&](int64_t j, int64_t place, int64_t run) {
            const Next after = next(w, begin, n, j, true);
            for (int64_t u = from; u < to; ++u) {
                fetch(after, run, u - from, to - from, u);
                const Stored of = keys(u);
                pick(heads(u), [&](auto r) { products<r()>(of, u - from, j, place, run); });
            }
        });
        for (int64_t u = from; u < to; ++u)
            for (int64_t i = 0; i < heads(u); ++i) {
                const int64_t h = first_head(u) + i;
                const Powers found = powers(Scores(asked, h), MASKED, p + ((u - from) * MOST + i) * STRETCH, n,
                                            w.position - begin, up(n, L));
                float* const end = cells + h * cell + cell - L;
                end[0] = found.top, end[1] = found.sum;
            }
        along(w.table, begin, n, [&](int64_t j, int64_t place, int64_t run) {
            const Next after = next(w, begin, n, j, false);
            for (int64_t u = from; u < to; ++u) {
                fetch(after, run, u - from, to - from, u);
                const Stored of = values(u);
                pick(heads(u), [&](auto r) { mix<r()>(of, u - from, j, place, run, cells + first_head(u) * cell); });
            }
        });
    }

    // The stretches of a row, of one head, to its output
    static void fold(const Rows& c, int64_t row, int64_t h, int64_t n_stretches, const float* cells) {
        const int64_t cell = cell_of(c), top_at = cell - L, next = c.H * cell;
        const float *const first = cells + h * cell, sink = c.sinks ? c.sinks[h] * LOG2E : MASKED;
        float top = sink, all = 0;
        for (int64_t s = 0; s < n_stretches; ++s) top = std::max(top, first[s * next + top_at]);
        if (c.sinks) all = exp2(splat(sink - top))[0];
        for (int64_t s = 0; s < n_stretches; ++s)
            all += exp2(splat(first[s * next + top_at] - top))[0] * first[s * next + top_at + 1];
        float* const to = c.out + (row * c.H + h) * c.E;
        for (int64_t e = 0; e < c.E; e += L) {
            Vec sums{};
            for (int64_t s = 0; s < n_stretches; ++s)
                sums += at(first + s * next + e) * exp2(splat(first[s * next + top_at] - top));
            sums /= all;
            memcpy(to + e, &sums, 4 * std::min<int64_t>(L, c.E - e));
        }
        if (Stored::EVEN_ODD) together(to, c.E);
    }

   private:
    // Numbers in the order of a pair, of each whole one; and back
    static void apart(float* x, int64_t n) {
        for (int64_t d = 0; d + 2 * L <= n; d += 2 * L) {
            float y[2 * L];
            for (int i = 0; i < L; ++i) y[i] = x[d + 2 * i], y[L + i] = x[d + 2 * i + 1];
            memcpy(x + d, y, sizeof y);
        }
    }
    static void together(float* x, int64_t n) {
        for (int64_t d = 0; d + 2 * L <= n; d += 2 * L) {
            float y[2 * L];
            for (int i = 0; i < L; ++i) y[2 * i] = x[d + i], y[2 * i + 1] = x[d + L + i];
            memcpy(x + d, y, sizeof y);
        }
    }

    template <class Visit>
    static INLINE void pick(int64_t heads, const Visit& visit) {
        switch (heads) {
            case 1: return visit(std::integral_constant<int, 1>());
            case 2: return visit(std::integral_constant<int, 2>());
            case 3: return visit(std::integral_constant<int, 3>());
            default: return visit(std::integral_constant<int, 4>());
        }
    }

    // Of n tokens from `begin` on, those that lie next to each other, RUN at most: the first's number, its place, how many
    template <class Visit>
    INLINE void along(const int64_t* table, int64_t begin, int64_t n, const Visit& visit) const {
        const int64_t* page = table + begin / c.page;
        for (int64_t j = 0, offset = begin % c.page; j < n; ++page, offset = 0)
            for (; offset < c.page && j < n;) {
                const int64_t run = std::min({c.page - offset, n - j, RUN});
                visit(j, *page * c.page + offset, run);
                j += run, offset += run;
            }
    }

    struct Next {  // what is fetched: of keys or of values, from a place on; or nothing
        bool keys;
        int64_t place;
    };

    // What comes `step` tokens after the j-th of a stretch: after its keys its values, then the next stretch's keys
    INLINE Next next(const Where& w, int64_t begin, int64_t n, int64_t j, bool keys) const {
        const bool over = j + step >= n;
        const int64_t token = begin + j + step - (over && keys ? n : 0);
        if (token > w.position) return {keys, -1};
        return {keys != over, w.table[token / c.page] * c.page + token % c.page};
    }

    // For the i-th unit of n. A task with all units asks for whole places, one part a unit; else for its unit's own.
    INLINE void fetch(const Next& next, int64_t run, int64_t i, int64_t n, int64_t unit) const {
        if (next.place < 0) return;
        const Stored store = next.keys ? keys(unit) : values(unit);
        if (n == units) store.fetch(next.place, run, i, n);
        else store.fetch_own(next.place, run);
    }

    template <int R>
    __attribute__((noinline)) void products(const Stored& keys, int64_t unit, int64_t j, int64_t place, int64_t run) const {
        const float *of = q + unit * MOST * width, *each = nullptr;
        float* to = p + unit * MOST * STRETCH + j;
        if constexpr (SCALED) {
            for (int64_t g = 0; g < keys.groups(); ++g) put(scales + g * RUN, keys.group_scales(place, run, g));
            if (keys.groups() > 1) each = scales;
        }
        int64_t i = 0;
#if defined(__AVX512F__)
        if (run == RUN) {
            Vec part[R][4];
            UNROLL for (int k = 0; k < 4; ++k) {
                Vec sums[R][4];
                dots<R, 4>(keys, place + 4 * k, of, each ? each + 4 * k : nullptr, sums);
                UNROLL for (int h = 0; h < R; ++h) part[h][k] = quarters(sums[h]);
            }
            UNROLL for (int h = 0; h < R; ++h) put(to + h * STRETCH, wholes(part[h]));
            i = run;
        }
#endif
        for (; i + 4 <= run; i += 4) {
            Vec sums[R][4];
            dots<R, 4>(keys, place + i, of, each ? each + i : nullptr, sums);
            UNROLL for (int h = 0; h < R; ++h) totals(sums[h], to + h * STRETCH + i);
        }
        for (; i < run; ++i) {
            Vec sums[R][1];
            dots<R, 1>(keys, place + i, of, each ? each + i : nullptr, sums);
            UNROLL for (int h = 0; h < R; ++h) to[h * STRETCH + i] = total(sums[h][0]);
        }
        if (c.D % (2 * L)) dots_tail<R>(keys, place, run, of, each, to);
        if (SCALED && !each)
            for (int h = 0; h < R; ++h)
                for (int64_t k = 0; k < run; ++k) to[h * STRETCH + k] *= scales[k];
    }

    // Products of R heads with J keys, by lanes; each: scales of the keys, [groups][RUN], or null
    template <int R, int J>
    INLINE void dots(const Stored& keys, int64_t place, const float* of, const float* each, Vec (&sums)[R][J]) const {
        typename Stored::Row key[J];
        UNROLL for (int j = 0; j < J; ++j) key[j] = keys.row(place + j);
        UNROLL for (int i = 0; i < R; ++i)
            UNROLL for (int j = 0; j < J; ++j) sums[i][j] = Vec{};
        for (int64_t d = 0; d + 2 * L <= c.D; d += 2 * L) {
            Vec x[J], y[J];
            UNROLL for (int j = 0; j < J; ++j) {
                keys.pair(key[j], d, x[j], y[j]);
                x[j] = held(x[j]), y[j] = held(y[j]);
            }
            if constexpr (SCALED)
                if (each)
                    UNROLL for (int j = 0; j < J; ++j) {
                        const float by = each[d / Stored::GROUP * RUN + j];
                        x[j] *= by, y[j] *= by;
                    }
            UNROLL for (int i = 0; i < R; ++i) {
                const Vec a = held(at(of + i * width + d)), b = held(at(of + i * width + d + L));
                UNROLL for (int j = 0; j < J; ++j) sums[i][j] += a * x[j];
                UNROLL for (int j = 0; j < J; ++j) sums[i][j] += b * y[j];
            }
        }
    }

    // What the numbers after the last pair add to the products of all heads
    template <int R>
    __attribute__((noinline)) void dots_tail(const Stored& keys, int64_t place, int64_t run, const float* of,
                                             const float* each, float* to) const {
        for (int64_t d = down(c.D, 2 * L); d < c.D; d += L)
            for (int64_t k = 0; k < run; ++k) {
                Vec x = keys.tail(keys.row(place + k), d, c.D - d);
                if constexpr (SCALED)
                    if (each) x *= each[d / Stored::GROUP * RUN + k];
                for (int h = 0; h < R; ++h) to[h * STRETCH + k] += total(some(of + h * width + d, c.D - d) * x);
            }
    }

    template <int R>
    __attribute__((noinline)) void mix(const Stored& values, int64_t unit, int64_t j, int64_t place, int64_t run, float* to) const {
        const float* weights = p + unit * MOST * STRETCH + j;
        int64_t stride = STRETCH, e = 0;
        float scaled[MOST * RUN];
        auto scale = [&]() {  // where a group begins
            if constexpr (SCALED)
                if (e % Stored::GROUP == 0) {
                    const Vec by = values.group_scales(place, run, e / Stored::GROUP);
                    const float* own = p + unit * MOST * STRETCH + j;
                    UNROLL for (int i = 0; i < R; ++i) put(scaled + i * RUN, some(own + i * STRETCH, run) * by);
                    weights = scaled, stride = RUN;
                }
        };
        for (; e + PAIRS * 2 * L <= c.E; e += PAIRS * 2 * L)
            scale(), columns<R, PAIRS>(values, place, run, weights, stride, to, e);
        for (; e + 2 * L <= c.E; e += 2 * L) scale(), columns<R, 1>(values, place, run, weights, stride, to, e);
        for (; e < c.E; e += L) scale(), tail<R>(values, place, run, weights, stride, to, e);
    }

    // Of P pairs of vectors of the sums, from column e on
    template <int R, int P>
    INLINE void columns(const Stored& values, int64_t place, int64_t run, const float* weights, int64_t stride, float* to,
                        int64_t e) const {
        Vec mixed[R][2 * P];
        UNROLL for (int i = 0; i < R; ++i)
            UNROLL for (int v = 0; v < 2 * P; ++v) mixed[i][v] = at(to + i * cell + e + v * L);
        for (int64_t k = 0; k < run; ++k) {
            typename Stored::Row value = values.row(place + k);
            Vec x[2 * P];
            UNROLL for (int v = 0; v < 2 * P; v += 2) {
                values.pair(value, e + v * L, x[v], x[v + 1]);
                x[v] = held(x[v]), x[v + 1] = held(x[v + 1]);
            }
            UNROLL for (int i = 0; i < R; ++i) {
                const Vec by = held(splat(weights[i * stride + k]));
                UNROLL for (int v = 0; v < 2 * P; ++v) mixed[i][v] += by * x[v];
            }
        }
        UNROLL for (int i = 0; i < R; ++i)
            UNROLL for (int v = 0; v < 2 * P; ++v) put(to + i * cell + e + v * L, mixed[i][v]);
    }

    // Of the last numbers, fewer than a pair
    template <int R>
    __attribute__((noinline)) void tail(const Stored& values, int64_t place, int64_t run, const float* weights, int64_t stride, float* to,
              int64_t e) const {
        for (int64_t k = 0; k < run; ++k) {
            const Vec x = values.tail(values.row(place + k), e, c.E - e);
            UNROLL for (int i = 0; i < R; ++i) put(to + i * cell + e, at(to + i * cell + e) + weights[i * stride + k] * x);
        }
    }
};
