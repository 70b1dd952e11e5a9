// Many new tokens of a sequence over its pages: what they see of a head is copied next to each other, once for all of
// them, and goes through the blocks of blocked.h.
#pragma once

#include <vector>

#include "blocked.h"
#include "pool.h"
#include "turn.h"

template <class Stored>
class Lanes {
   public:
    explicit Lanes(const Rows& c) : c(c), call(call_of(c)), D16(up(c.D, L)), E16(up(c.E, L)) {}

    // What was not yet stored must be.
    void run() const {
        std::vector<Head> heads;
        int64_t held = 0;
        for (int64_t i = 0; i < c.n_lanes * c.K; ++i) {
            const Head head = head_of(c.lanes[i / c.K], i % c.K);
            const int64_t floats = head.rows * (D16 + E16);
            if (!heads.empty() && held + floats > HELD) {
                mix(heads, held);
                heads.clear(), held = 0;
            }
            heads.push_back(head), held += floats;
        }
        if (!heads.empty()) mix(heads, held);
    }

   private:
    static constexpr int64_t HELD = 1 << 20;  // floats of copies, if several heads have them at a time
    static constexpr int64_t STRETCH = 256;   // keys that a task copies

    struct Head {  // of keys and values, of a lane
        const Lane* lane;
        int64_t kv, first, base, rows;  // the first position that is seen, the one of the first row
        float *k, *v;
    };
    struct Part {  // of a head's keys, or of a query head's tokens, from `from` on
        const Head* head;
        int64_t query_head, from;
    };

    const Rows& c;
    const Call call;
    const int64_t D16, E16;

    Head head_of(const Lane& lane, int64_t kv) const {
        const int64_t first = Scores(call, 0).first_key(lane.position), base = down(first, PANEL);
        return {&lane, kv, first, base, up(lane.position + lane.end - lane.begin - base, PANEL), nullptr, nullptr};
    }

    void mix(std::vector<Head>& heads, int64_t held) const {
        Scratch memory(held);
        std::vector<Part> keys, queries;
        for (Head& head : heads) {
            head.k = memory.take(head.rows * D16), head.v = memory.take(head.rows * E16);
            for (int64_t from = 0; from < head.rows; from += STRETCH) keys.push_back({&head, 0, from});
            for (int64_t i = 0; i < c.H / c.K; ++i)
                for (int64_t from = 0; from < head.lane->end - head.lane->begin; from += QB)
                    queries.push_back({&head, head.kv * (c.H / c.K) + i, from});
        }
        share(keys.size(), c.threads, [&](int64_t i) { copy(*keys[i].head, keys[i].from); });
        share(queries.size(), c.threads, [&](int64_t i) {
            block(*queries[i].head, queries[i].query_head, queries[i].from);
        });
    }

    void copy(const Head& head, int64_t from) const {
        const Stored keys(c.keys, c.key_scales, c.K, c.D, head.kv), values(c.values, c.value_scales, c.K, c.E, head.kv);
        const int64_t end = head.lane->position + head.lane->end - head.lane->begin;
        for (int64_t i = from; i < std::min(head.rows, from + STRETCH); ++i) {
            const int64_t position = head.base + i;
            float *k = head.k + i * D16, *v = head.v + i * E16;
            if (position < head.first || position >= end) {  // the table may know nothing of them
                memset(k, 0, 4 * D16), memset(v, 0, 4 * E16);
                continue;
            }
            const int64_t place = head.lane->table[position / c.page] * c.page + position % c.page;
            const typename Stored::Row key = keys.row(place), value = values.row(place);
            for (int64_t d = 0; d < D16; d += L) put(k + d, keys.load(key, d, c.D - d));
            for (int64_t e = 0; e < E16; e += L) put(v + e, values.load(value, e, c.E - e));
        }
    }

    void block(const Head& head, int64_t query_head, int64_t from) const {
        Queries queries(call);
        Scratch turned(QB * D16);
        float* q = turned.take(QB * D16);
        const int64_t row = head.lane->begin + from, n = std::min<int64_t>(QB, head.lane->end - row);
        for (int64_t i = 0; i < n; ++i)
            turn(q + i * D16, c.q + (row + i) * c.q_row + query_head * c.D, c, c.q_norm, row + i);
        queries.block(query_head, {head.k, head.v, head.base}, head.lane->position + from, n, q, D16,
                      c.out + (row * c.H + query_head) * c.E, c.H * c.E, nullptr);
    }
};
