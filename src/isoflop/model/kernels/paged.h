// What attention over pages is asked for. N row (one token each), H query head, K key/value head, D width of queries and
// keys, E width of values, C turned pair.
#pragma once

#include <cstdint>

struct Where {  // of a row
    const int64_t* table;  // its sequence's pages
    int64_t position;
};

// The caller's arguments, in this order (paged.py packs the same). Rows are `q_row`, .. floats apart. Without values,
// those are the first E columns of the keys; without turns, there are none.
struct Rows {
    const float *q, *k, *v;
    float* out;  // [N, H, E]
    const float *cos, *sin;  // [N, C]
    const float *slopes, *sinks;
    void *keys, *key_scales, *values, *value_scales;
    const Where* where;  // [N]
    const float *q_norm, *k_norm;  // [D] each, or null
    int64_t q_row, k_row, v_row, N, H, K, D, E, C, interleaved, page, kind, window, chunk, threads;
    double scale, softcap, eps;
};
