// What attention over pages is asked for. N row that meets its pages in place, H query head, K key/value head, D width of
// queries and keys, E width of values, C turned pair.
#pragma once

#include <cstdint>

struct Where {  // of a row
    const int64_t* table;  // its sequence's pages
    int64_t position;
};

struct Lane {  // rows begin .. end - 1, tokens of one sequence next to each other, the first at `position`
    const int64_t* table;
    int64_t position, begin, end;
};

// The caller's arguments, in this order (paged.py packs the same). A row is a token; first come N rows that are met one by
// one, then those of the lanes, without gaps. Rows are `q_row`, .. floats apart. Without values, those are the first E
// columns of the keys (and there are no lanes); without turns, there are none.
struct Rows {
    const float *q, *k, *v;
    float* out;  // [rows, H, E]
    const float *cos, *sin;  // [rows, C]
    const float *slopes, *sinks;
    void *keys, *key_scales, *values, *value_scales;
    const Where* where;  // [N]
    const Lane* lanes;   // [n_lanes]
    const float *q_norm, *k_norm;  // [D] each, or null
    int64_t q_row, k_row, v_row, N, n_lanes, H, K, D, E, C, interleaved, page, kind, window, chunk, threads;
    double scale, softcap, eps;
};
