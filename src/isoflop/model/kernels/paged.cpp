// Attention over pages: turns queries and keys, stores keys and values where the sequence's table says, and reads all that
// a token sees. Single tokens, as in decoding, read through the table, in place, once for all heads that share it; many of
// a sequence are lanes.h's.
//
// A row is one token. N row, H query head, K key/value head, D width of queries and keys, E width of values, C turned
// pair.

#include <type_traits>

#include "lanes.h"

constexpr int MOST = 4;        // heads of a task
constexpr int64_t AHEAD = 32;  // tokens from those in work to those that are fetched

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

// Heads that share keys, up to MOST of them, are a unit; a task reads the pages once for several units of a row, as their
// keys lie next to each other.
template <class Stored>
struct Reader {
    const Rows& c;
    Call asked;
    int64_t parts, room, width, columns_, capacity;
    Scratch memory;
    float *q, *sums, *p;  // a unit: [MOST][width], [MOST][columns_], [MOST][room]

    Reader(const Rows& c, int64_t longest, int64_t units)
        : c(c),
          asked(call_of(c)),
          parts((c.H / c.K + MOST - 1) / MOST),
          room(0),
          width(up(c.D, L)),
          columns_(up(c.E, L)),
          capacity(up(longest, L)),
          memory(units * MOST * (width + columns_ + capacity)),
          q(memory.take(units * MOST * width)),
          sums(memory.take(units * MOST * columns_)),
          p(memory.take(units * MOST * capacity)) {}

    int64_t first_head(int64_t unit) const { return unit / parts * (c.H / c.K) + unit % parts * MOST; }
    int64_t heads(int64_t unit) const { return std::min<int64_t>(MOST, c.H / c.K - unit % parts * MOST); }

    // Units from .. to - 1 of a row
    void task(int64_t row, int64_t from, int64_t to) {
        const int64_t *table = c.where[row].table, position = c.where[row].position;
        const int64_t first = Scores(asked, 0).first_key(position), n = position + 1 - first;
        room = up(n, L);
        for (int64_t u = from; u < to; ++u)
            for (int64_t i = 0; i < heads(u); ++i)
                turn(q + ((u - from) * MOST + i) * width, c.q + row * c.q_row + (first_head(u) + i) * c.D, c, c.q_norm,
                     row);
        std::fill(sums, sums + (to - from) * MOST * columns_, 0.0f);
        along(table, first, n, [&](int64_t j, int64_t place, int64_t run, int64_t later) {
            for (int64_t u = from; u < to; ++u) {
                Stored keys(c.keys, c.key_scales, c.K, c.D, u / parts);
                pick(heads(u), [&](auto r) { products<r()>(keys, u - from, j, place, run, later); });
            }
        });
        for (int64_t u = from; u < to; ++u)
            for (int64_t i = 0; i < heads(u); ++i) {
                const int64_t h = first_head(u) + i;
                weigh(Scores(asked, h), c.sinks ? c.sinks + h : nullptr, p + ((u - from) * MOST + i) * room, n, room);
            }
        along(table, first, n, [&](int64_t j, int64_t place, int64_t run, int64_t later) {
            for (int64_t u = from; u < to; ++u) {
                Stored values(c.values ? c.values : c.keys, c.values ? c.value_scales : c.key_scales, c.K,
                              c.values ? c.E : c.D, u / parts);
                pick(heads(u), [&](auto r) { mix<r()>(values, u - from, j, place, run, later); });
            }
        });
        for (int64_t u = from; u < to; ++u)
            for (int64_t i = 0; i < heads(u); ++i)
                memcpy(c.out + (row * c.H + first_head(u) + i) * c.E, sums + ((u - from) * MOST + i) * columns_, 4 * c.E);
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

    template <int R>
    void products(const Stored& keys, int64_t unit, int64_t j, int64_t place, int64_t run, int64_t later) const {
        const float* of = q + unit * MOST * width;
        float* to = p + unit * MOST * room + j;
        int64_t i = 0;
        for (; i + 4 <= run; i += 4) {
            UNROLL for (int k = 0; k < 4; ++k) keys.fetch(later + i + k);
            dots<R, 4>(keys, place + i, of, to + i);
        }
        for (; i < run; ++i) dots<R, 1>(keys, place + i, of, to + i);
    }

    template <int R>
    void mix(const Stored& values, int64_t unit, int64_t j, int64_t place, int64_t run, int64_t later) const {
        const float* weights = p + unit * MOST * room + j;
        float* to = sums + unit * MOST * columns_;
        for (int64_t k = 0; k < run; ++k) values.fetch(later + k);
        int64_t e = 0;
        for (; e + 4 * L <= c.E; e += 4 * L) columns<R, 4>(values, place, run, weights, to, e);
        for (; e < c.E; e += L) columns<R, 1>(values, place, run, weights, to, e);
    }

    // to[i][j] = product of head i with the key j places on, of J
    template <int R, int J>
    INLINE void dots(const Stored& keys, int64_t place, const float* of, float* to) const {
        typename Stored::Row key[J];
        Vec sums[R][4];
        UNROLL for (int j = 0; j < J; ++j) key[j] = keys.row(place + j);
        UNROLL for (int i = 0; i < R; ++i)
            UNROLL for (int j = 0; j < J; ++j) sums[i][j] = Vec{};
        for (int64_t d = 0; d < c.D; d += L) {
            Vec x[J];
            UNROLL for (int j = 0; j < J; ++j) x[j] = keys.load(key[j], d, c.D - d);
            UNROLL for (int i = 0; i < R; ++i) {
                Vec y = some(of + i * width + d, c.D - d);
                UNROLL for (int j = 0; j < J; ++j) sums[i][j] += y * x[j];
            }
        }
        UNROLL for (int i = 0; i < R; ++i) {
            if (J == 4) totals(sums[i], to + i * room);
            else to[i * room] = total(sums[i][0]);
        }
    }

    // Of V vectors of the sums, from column e on
    template <int R, int V>
    INLINE void columns(const Stored& values, int64_t place, int64_t run, const float* weights, float* to,
                        int64_t e) const {
        Vec mixed[R][V];
        UNROLL for (int i = 0; i < R; ++i)
            UNROLL for (int v = 0; v < V; ++v) mixed[i][v] = at(to + i * columns_ + e + v * L);
        for (int64_t k = 0; k < run; ++k) {
            typename Stored::Row value = values.row(place + k);
            Vec x[V];
            UNROLL for (int v = 0; v < V; ++v) x[v] = values.load(value, e + v * L, V > 1 ? L : c.E - e);
            UNROLL for (int i = 0; i < R; ++i)
                UNROLL for (int v = 0; v < V; ++v) mixed[i][v] += weights[i * room + k] * x[v];
        }
        UNROLL for (int i = 0; i < R; ++i)
            UNROLL for (int v = 0; v < V; ++v) put(to + i * columns_ + e + v * L, mixed[i][v]);
    }

    // Of n tokens from the first on, those that lie next to each other: the first's number, its place, how many, and the
    // place of one that comes AHEAD tokens later
    template <class Visit>
    INLINE void along(const int64_t* table, int64_t first, int64_t n, const Visit& visit) const {
        int64_t last = (first + n - 1) / c.page, skipped = (AHEAD + c.page - 1) / c.page;
        for (int64_t j = 0; j < n;) {
            int64_t offset = (first + j) % c.page, run = std::min(c.page - offset, n - j), page = (first + j) / c.page;
            int64_t place = table[page] * c.page + offset, later = table[std::min(page + skipped, last)] * c.page + offset;
            visit(j, place, run, later);
            j += run;
        }
    }
};

constexpr int64_t STORED = 32;  // rows that a task stores

template <class Stored>
static void store_all(const Rows& c) {
    const int64_t rows = c.n_lanes ? c.lanes[c.n_lanes - 1].end : c.N;
    share((rows + STORED - 1) / STORED, c.threads, [&](int64_t piece) {
        Scratch turned(up(c.D, L));
        const Lane* lane = c.lanes;
        for (int64_t row = piece * STORED; row < std::min(rows, (piece + 1) * STORED); ++row) {
            while (row >= c.N && row >= lane->end) ++lane;
            const Where where = row < c.N ? c.where[row] : Where{lane->table, lane->position + row - lane->begin};
            store<Stored>(c, row, where, reinterpret_cast<float*>(turned.memory));
        }
    });
}

template <class Stored>
static void run(const Rows& c) {
    store_all<Stored>(c);
    if (c.n_lanes) Lanes<Stored>(c).run();
    if (!c.N) return;
    int64_t longest = 0, group = c.H / c.K, parts = (group + MOST - 1) / MOST;
    for (int64_t row = 0; row < c.N; ++row)
        longest = std::max(longest, std::min({c.where[row].position + 1, c.window, c.chunk}));
    // All units of a row in one task, unless the threads would have too few.
    const int64_t units = c.K * parts, wanted = c.threads > 1 ? c.threads * (c.N > 1 ? 2 : 1) : 1;
    const int64_t size = std::min(units, (c.N * units + wanted - 1) / wanted), of_row = (units + size - 1) / size;
    int64_t tasks = c.N * of_row, take = c.threads > 1 ? (tasks + 4 * c.threads - 1) / (4 * c.threads) : tasks;
    share((tasks + take - 1) / take, c.threads, [&](int64_t piece) {
        Reader<Stored> reader(c, longest, size);
        for (int64_t i = piece * take; i < std::min(tasks, (piece + 1) * take); ++i)
            reader.task(i / of_row, i % of_row * size, std::min(units, (i % of_row + 1) * size));
    });
}

extern "C" void paged_attention(const Rows* c) {
    switch (c->kind) {
        case 0: return run<Fp32>(*c);
        case 1: return run<Bf16>(*c);
        case 2: return run<Int8>(*c);
        default: return run<Int4>(*c);
    }
}
