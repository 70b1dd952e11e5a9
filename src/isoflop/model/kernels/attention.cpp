// Causal attention in fp32, forward and backward. Method: online softmax over blocks of keys (Milakov & Gimelshein
// 2018; Dao et al. 2022, 2023: the backward recomputes the probabilities from the saved logarithm of their sum).
//
// B batch, T query, S key, H query head, K key/value head, D width of queries and keys, E width of values.
// Blocks and the order of scores are blocked.h's. Rows are copied next to each other (and padded to whole vectors)
// first: strided rows of several heads evict each other from the cache. No sum depends on the number of threads.

#include "blocked.h"
#include "one_query.h"

constexpr int64_t CHUNK = 1024;  // queries of a forward task

// ---- forward

struct Forward {
    const Call& c;
    Queries queries;
    int64_t D16, E16, capacity;  // padded widths; keys
    Scratch memory;
    float *k, *v;

    Forward(const Call& c)
        : c(c),
          queries(c),
          D16(queries.D16),
          E16(queries.E16),
          capacity(up(std::min(c.start + c.T, std::min(c.T, CHUNK) + std::min(c.window, c.chunk)), PANEL) + PANEL),
          memory(capacity * (D16 + E16)),
          k(memory.take(capacity * D16)),
          v(memory.take(capacity * E16)) {}

    // The heads of one key/value head, for at most CHUNK queries
    void task(int64_t batch, int64_t kv, int64_t t0, int64_t t1) {
        int64_t base = down(Scores(c, 0).first_key(c.start + t0), PANEL), keys = c.start + t1 - base;
        copy_rows(k, D16, c.ks.at(c.k, batch, base, kv), c.ks.row, keys, c.D);
        copy_rows(v, E16, c.vs.at(c.v, batch, base, kv), c.vs.row, keys, c.E);
        memset(k + keys * D16, 0, 4 * (up(keys, PANEL) - keys) * D16);
        for (int64_t head = kv * (c.H / c.K); head < (kv + 1) * (c.H / c.K); ++head)
            for (int64_t t = t0; t < t1; t += QB)
                queries.block(head, {k, v, base}, c.start + t, std::min<int64_t>(QB, t1 - t),
                              c.qs.at(c.q, batch, t, head), c.qs.row, c.out + ((batch * c.T + t) * c.H + head) * c.E,
                              c.H * c.E, c.lse + (batch * c.H + head) * c.T + t);
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
        copy_rows(k, D16, c.ks.at(c.k, batch, base, kv), c.ks.row, keys, c.D);
        copy_rows(v, E16, c.vs.at(c.v, batch, base, kv), c.vs.row, keys, c.E);
        memset(k + keys * D16, 0, 4 * more * D16);
        memset(v + keys * E16, 0, 4 * more * E16);
        memset(dk, 0, 4 * (keys + more) * D16);
        memset(dv, 0, 4 * (keys + more) * E16);
        for (int64_t head = kv * (c.H / c.K); head < (kv + 1) * (c.H / c.K); ++head) {
            double sink = 0;
            for (int64_t t = 0; t < c.T; t += QB) sink += queries(batch, head, t, std::min<int64_t>(QB, c.T - t));
            if (c.sinks) c.dsinks[batch * c.H + head] = static_cast<float>(sink);
        }
        give(c.dks.at(c.dk, batch, 0, kv), c.dks.row, dk, D16, c.D, static_cast<float>(c.scale));
        give(c.dvs.at(c.dv, batch, 0, kv), c.dvs.row, dv, E16, c.E, 1.0f);
    }

    // Keys before the first that is seen get zeros
    void give(float* to, int64_t row, const float* from, int64_t width, int64_t columns, float scale) {
        for (int64_t i = 0; i < base; ++i) memset(to + i * row, 0, 4 * columns);
        write_rows(to + base * row, row, from, width, keys, columns, scale);
    }

    // A block of queries; returns its part of the sink's gradient
    double queries(int64_t batch, int64_t head, int64_t t, int64_t n) {
        Scores s(c, head);
        Block block(s, c.start + t, n);
        const float* out = c.out + ((batch * c.T + t) * c.H + head) * c.E;
        copy_transposed(qT, q, D16, c.qs.at(c.q, batch, t, head), c.qs.row, n, c.D, s.scale);
        copy_transposed(gradT, grad, E16, c.gs.at(c.grad, batch, t, head), c.gs.row, n, c.E, 1.0f);
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
        write_rows(c.dqs.at(c.dq, batch, t, head), c.dqs.row, dq, D16, n, c.D, static_cast<float>(c.scale));
        return c.sinks ? sink_gradient(c.sinks[head] * LOG2E, n) : 0;
    }

    // delta[query] = out . grad = sum over keys of p * dp
    void find_delta(const float* out, int64_t n) {
        for (int64_t r = 0; r < QB; r += L) {
            Vec x[L], total{};
            UNROLL for (int i = 0; i < L; ++i) {
                x[i] = Vec{};
                const float *mixed = out + (r + i) * c.H * c.E, *seed = grad + (r + i) * E16;
                if (r + i < n)
                    for (int64_t e = 0; e < c.E; e += L) x[i] += some(mixed + e, c.E - e) * at(seed + e);
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
            UNROLL for (int v = 0; v < V; ++v) {
                float* here = tile + i * QB + v * L;
                put(here, exp2(at(here) - at(lse + (w + v) * L)));
            }
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
            const float *weights = ds + (from - begin) * QB + r, *keys = k + (from - base) * D16;
            if (from < to) add_products<QB, 1>(dq + r * D16, weights, keys, D16, to - from);
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

extern "C" void attention_one(const Call* c) {
    share<One>(*c, c->B * c->K, [&](One& worker, int64_t i) { worker.task(i / c->K, i % c->K); });
}
