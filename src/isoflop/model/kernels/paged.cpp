// Attention of single tokens over pages, as in decoding: turns queries and keys, stores keys and values where the
// sequence's table says, and reads all that a token sees through the table, in place, once for all heads that share it.
//
// A row is one token. N row, H query head, K key/value head, D width of queries and keys, E width of values, C turned
// pair.

#include "one_query.h"
#include "paged.h"
#include "pool.h"
#include "stored.h"

constexpr int MOST = 4;  // heads of a task

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

// A query or a key as it meets others; `norm` are the weights of its RMS norm, or null.
static void turn(float* to, const float* from, const Rows& c, const float* norm, int64_t row) {
    memcpy(to, from, 4 * c.D);
    if (norm) {
        Vec squares{};
        for (int64_t d = 0; d < c.D; d += L) squares += some(from + d, c.D - d) * some(from + d, c.D - d);
        const float factor = 1 / std::sqrt(total(squares) / static_cast<float>(c.D) + static_cast<float>(c.eps));
        for (int64_t d = 0; d < c.D; ++d) to[d] = from[d] * factor * norm[d];
    }
    if (!c.cos) return;
    const float *cos = c.cos + row * c.C, *sin = c.sin + row * c.C;
    int64_t step = c.interleaved ? 2 : 1, other = c.interleaved ? 1 : c.C;
    for (int64_t i = 0; i < c.C; ++i) {
        const float a = to[i * step], b = to[i * step + other];
        to[i * step] = a * cos[i] - b * sin[i];
        to[i * step + other] = b * cos[i] + a * sin[i];
    }
}

template <class Stored>
static void store(const Rows& c, int64_t row, float* turned) {
    Where w = c.where[row];
    int64_t place = w.table[w.position / c.page] * c.page + w.position % c.page;
    for (int64_t kv = 0; kv < c.K; ++kv) {
        turn(turned, c.k + row * c.k_row + kv * c.D, c, c.k_norm, row);
        Stored(c.keys, c.key_scales, c.K, c.D, kv).save(place, turned);
        if (c.values) Stored(c.values, c.value_scales, c.K, c.E, kv).save(place, c.v + row * c.v_row + kv * c.E);
    }
}

template <class Stored>
struct Reader {
    const Rows& c;
    Call asked;  // what Scores reads of it
    int64_t capacity;
    Scratch memory;
    float *q, *p;  // [MOST][D], [MOST][capacity]

    Reader(const Rows& c, int64_t longest)
        : c(c),
          capacity(up(longest, L)),
          memory(MOST * (up(c.D, L) + capacity)),
          q(memory.take(MOST * up(c.D, L))),
          p(memory.take(MOST * capacity)) {
        asked.window = c.window, asked.chunk = c.chunk, asked.scale = c.scale, asked.softcap = c.softcap;
        asked.slopes = c.slopes, asked.sinks = c.sinks;
    }

    // Heads h .. h + heads - 1, which share keys
    void task(int64_t row, int64_t h, int64_t heads) {
        int64_t kv = h / (c.H / c.K), position = c.where[row].position;
        int64_t first = Scores(asked, 0).first_key(position), n = position + 1 - first;
        for (int64_t i = 0; i < heads; ++i)
            turn(q + i * up(c.D, L), c.q + row * c.q_row + (h + i) * c.D, c, c.q_norm, row);
        Stored keys(c.keys, c.key_scales, c.K, c.D, kv);
        Stored values = c.values ? Stored(c.values, c.value_scales, c.K, c.E, kv) : keys;
        switch (heads) {
            case 1: all<1>(keys, values, row, h, first, n); break;
            case 2: all<2>(keys, values, row, h, first, n); break;
            case 3: all<3>(keys, values, row, h, first, n); break;
            default: all<4>(keys, values, row, h, first, n);
        }
    }

    template <int R>
    void all(const Stored& keys, const Stored& values, int64_t row, int64_t h, int64_t first, int64_t n) {
        const int64_t* table = c.where[row].table;
        int64_t room = up(n, L), width = up(c.D, L);
        along(table, first, n, [&](int64_t j, int64_t place, int64_t run) {
            int64_t i = 0;
            for (; i + 4 <= run; i += 4) dots<R, 4>(keys, place + i, p + j + i, room, width);
            for (; i < run; ++i) dots<R, 1>(keys, place + i, p + j + i, room, width);
        });
        for (int i = 0; i < R; ++i)
            weigh(Scores(asked, h + i), c.sinks ? c.sinks + h + i : nullptr, p + i * room, n, room);
        float* out = c.out + (row * c.H + h) * c.E;
        int64_t e = 0;
        for (; e + 4 * L <= c.E; e += 4 * L) columns<R, 4>(values, table, first, n, room, out, e);
        for (; e < c.E; e += L) columns<R, 1>(values, table, first, n, room, out, e);
    }

    // to[i][j] = product of head i with the key j places on, of J
    template <int R, int J>
    INLINE void dots(const Stored& keys, int64_t place, float* to, int64_t room, int64_t width) const {
        typename Stored::Row key[J];
        Vec sums[R][4];
        UNROLL for (int j = 0; j < J; ++j) key[j] = keys.row(place + j);
        UNROLL for (int i = 0; i < R; ++i)
            UNROLL for (int j = 0; j < J; ++j) sums[i][j] = Vec{};
        for (int64_t d = 0; d < c.D; d += L) {
            Vec x[J];
            UNROLL for (int j = 0; j < J; ++j) x[j] = keys.load(key[j], d, c.D - d);
            UNROLL for (int i = 0; i < R; ++i) {
                Vec y = some(q + i * width + d, c.D - d);
                UNROLL for (int j = 0; j < J; ++j) sums[i][j] += y * x[j];
            }
        }
        UNROLL for (int i = 0; i < R; ++i) {
            if (J == 4) totals(sums[i], to + i * room);
            else to[i * room] = total(sums[i][0]);
        }
    }

    // V vectors of the output, from column e on
    template <int R, int V>
    void columns(const Stored& values, const int64_t* table, int64_t first, int64_t n, int64_t room, float* out,
                 int64_t e) {
        int64_t left = c.E - e;
        Vec sums[R][V];
        UNROLL for (int i = 0; i < R; ++i)
            UNROLL for (int v = 0; v < V; ++v) sums[i][v] = Vec{};
        along(table, first, n, [&](int64_t j, int64_t place, int64_t run) {
            for (int64_t k = 0; k < run; ++k) {
                typename Stored::Row value = values.row(place + k);
                Vec x[V];
                UNROLL for (int v = 0; v < V; ++v) x[v] = values.load(value, e + v * L, V > 1 ? L : left);
                UNROLL for (int i = 0; i < R; ++i)
                    UNROLL for (int v = 0; v < V; ++v) sums[i][v] += p[i * room + j + k] * x[v];
            }
        });
        for (int i = 0; i < R; ++i)
            for (int v = 0; v < V; ++v)
                memcpy(out + i * c.E + e + v * L, &sums[i][v], 4 * std::min<int64_t>(L, left - v * L));
    }

    // Of n tokens from the first on, those that lie next to each other: the first's number, its place, and how many
    template <class Visit>
    INLINE void along(const int64_t* table, int64_t first, int64_t n, const Visit& visit) const {
        for (int64_t j = 0; j < n;) {
            int64_t offset = (first + j) % c.page, run = std::min(c.page - offset, n - j);
            int64_t place = table[(first + j) / c.page] * c.page + offset;
            visit(j, place, run);
            j += run;
        }
    }
};

template <class Stored>
static void run(const Rows& c) {
    Scratch turned(up(c.D, L));
    int64_t longest = 0, group = c.H / c.K, parts = (group + MOST - 1) / MOST;
    for (int64_t row = 0; row < c.N; ++row) {
        store<Stored>(c, row, reinterpret_cast<float*>(turned.memory));
        int64_t position = c.where[row].position;
        longest = std::max(longest, std::min({position + 1, c.window, c.chunk}));
    }
    int64_t tasks = c.N * c.K * parts;
    auto task = [&](Reader<Stored>& reader, int64_t i) {
        int64_t part = i % parts, kv = i / parts % c.K, row = i / parts / c.K;
        reader.task(row, kv * group + part * MOST, std::min<int64_t>(MOST, group - part * MOST));
    };
    int64_t take = c.threads > 1 ? (tasks + 4 * c.threads - 1) / (4 * c.threads) : tasks;
    share((tasks + take - 1) / take, c.threads, [&](int64_t piece) {
        Reader<Stored> reader(c, longest);
        for (int64_t i = piece * take; i < std::min(tasks, (piece + 1) * take); ++i) task(reader, i);
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
