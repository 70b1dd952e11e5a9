// Attention over pages: turns queries and keys, stores keys and values where the sequence's table says, and reads all that
// a token sees. Single tokens, as in decoding, read through the table, in place, once for all heads that share it; many of
// a sequence are lanes.h's.
//
// A row is one token. N row, H query head, K key/value head, D width of queries and keys, E width of values, C turned
// pair.

#include "lanes.h"
#include "reader.h"

constexpr int64_t STORED = 32;   // rows that a task stores
constexpr int64_t FOLDED = 512;  // heads' stretches from which threads share the folding

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

struct Task {  // n tokens of a row, from `begin` on, the number-th of all stretches
    int64_t row, begin, n, number;
};

// Rows that meet their pages in place
template <class Stored>
static void read_all(const Rows& c) {
    const Call asked = call_of(c);
    std::vector<Task> tasks;
    std::vector<int64_t> first{0};  // of each row's stretches
    for (int64_t row = 0; row < c.N; ++row) {
        const int64_t position = c.where[row].position;
        for (int64_t j = Scores(asked, 0).first_key(position); j <= position; j += STRETCH)
            tasks.push_back({row, j, std::min(STRETCH, position + 1 - j), static_cast<int64_t>(tasks.size())});
        first.push_back(tasks.size());
    }
    // All units of a row in one task, unless the threads would have too few.
    const int64_t n = tasks.size(), units = c.K * Reader<Stored>::parts_of(c);
    const int64_t wanted = c.threads > 1 ? c.threads * (n > 1 ? 4 : 1) : 1;
    const int64_t size = std::min(units, (n * units + wanted - 1) / wanted), of_each = (units + size - 1) / size;
    const int64_t all = n * of_each, take = c.threads > 1 ? (all + 4 * c.threads - 1) / (4 * c.threads) : all;
    const int64_t cells = c.H * Reader<Stored>::cell_of(c);
    Scratch memory(n * cells);
    float* const left = memory.take(n * cells);
    share((all + take - 1) / take, c.threads, [&](int64_t piece) {
        Reader<Stored> reader(c, size);
        for (int64_t i = piece * take; i < std::min(all, (piece + 1) * take); ++i) {
            const Task& t = tasks[i / of_each];
            const int64_t from = i % of_each * size;
            reader.stretch(t.row, t.begin, t.n, from, std::min(units, from + size), left + t.number * cells);
        }
    });
    share(c.N * c.H, n * c.H < FOLDED ? 1 : c.threads, [&](int64_t i) {
        const int64_t row = i / c.H;
        Reader<Stored>::fold(c, row, i % c.H, first[row + 1] - first[row], left + first[row] * cells);
    });
}

template <class Stored>
static void run(const Rows& c) {
    store_all<Stored>(c);
    if (c.n_lanes) Lanes<Stored>(c).run();
    if (c.N) read_all<Stored>(c);
}

extern "C" void paged_attention(const Rows* c) {
    switch (c->kind) {
        case 0: return run<Fp32>(*c);
        case 1: return run<Bf16>(*c);
        case 2: return run<Int8>(*c);
        default: return run<Int4>(*c);
    }
}
