// Matrices of few bits in the kernel's order, rows of 8-bit numbers, and tiles of their products.
//
// A band is 32 rows of the matrix, two vectors of outputs. A step of a band is two vectors of bytes: of 4 columns where
// codes are bytes, of 8 where they are halves (columns 0 to 3 in the low ones); byte 4 o + i of a vector is column i of
// output o. Groups are filled up to a multiple of 8 columns, where the rows hold zeros.
#pragma once

#include "vectors.h"

constexpr int LANES = 16, BAND = 32, MOST = 6;  // outputs of a vector and of a band, rows of a tile

typedef float Floats __attribute__((vector_size(64)));
typedef float LooseFloats __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t Words __attribute__((vector_size(64)));
typedef uint8_t Bytes __attribute__((vector_size(64)));
typedef uint16_t Shorts __attribute__((vector_size(64)));
typedef Bytes LooseBytes __attribute__((aligned(1), may_alias));

enum Kind : int64_t { BYTES, HALVES, LOOKUP, FLOAT8 };
enum ScaleType : int64_t { FP16, BF16, FP32 };

// Packed by quantized.py, in this order.
struct Matrix {
    const uint8_t* codes;    // [bands, steps, 2, 64]; of floats of 8 bits [bands, groups * width, 32]
    const void* scales;      // [bands, groups, 32]
    const uint8_t* zeros;    // the same shape, or null
    const int64_t* order;    // [I], or null
    const float* in_scales;  // [I] in the codes' order, or null
    const float* bias;       // [O], or null
    int64_t O, I, group, groups, width, kind, scale_type;
    int64_t zero;  // what every code stands above, where there are no zeros
    int64_t columns() const { return groups * width; }
    int64_t bands() const { return (O + BAND - 1) / BAND; }
    int64_t band_bytes() const { return columns() * (kind == HALVES || kind == LOOKUP ? BAND / 2 : BAND); }
};

// Rows that meet a matrix: codes [M, columns], the rest [M, groups].
struct Rows {
    int8_t* codes;
    float* scales;
    int32_t* starts;  // what takes the codes' zero out of the product
    float* sums;      // of the rounded row, where groups have zeros of their own
    float* floats;    // [M, columns]: instead of all the above, for a matrix of floats
};

struct Output {
    float* y;                 // [M, O]
    const float *bias, *add;  // [O] and [M, O], or null
};

static INLINE Floats floats(const float* p) { return *reinterpret_cast<const LooseFloats*>(p); }

#if defined(__AVX512F__) && defined(__AVX512BW__)

static INLINE Words dot(Words sum, Bytes w, Words x) {  // sum += of 4 bytes each, w unsigned
#if defined(__AVX512VNNI__)
    return (Words)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
#else  // no pair may reach 2^15: one byte of each pair at a time
    const __m512i even = _mm512_set1_epi16(255), one = _mm512_set1_epi16(1);
    __m512i low = _mm512_maddubs_epi16(_mm512_and_si512((__m512i)w, even), (__m512i)x);
    __m512i high = _mm512_maddubs_epi16(_mm512_andnot_si512(even, (__m512i)w), (__m512i)x);
    return sum + (Words)_mm512_madd_epi16(low, one) + (Words)_mm512_madd_epi16(high, one);
#endif
}
static INLINE Floats halves_to_floats(const uint16_t* p) {
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
static INLINE Bytes look_up(Bytes table, Bytes index) {
    return (Bytes)_mm512_shuffle_epi8((__m512i)table, (__m512i)index);
}

#else

static INLINE Words dot(Words sum, Bytes w, Words x) {
    int8_t of_x[64];
    memcpy(of_x, &x, 64);
    for (int o = 0; o < LANES; ++o)
        for (int i = 0; i < 4; ++i) sum[o] += int32_t(w[4 * o + i]) * of_x[4 * o + i];
    return sum;
}
static INLINE float half_to_float(uint16_t h) {  // a denormal half is a whole number of 2^-24
    uint32_t exponent = (h >> 10) & 31, bits = (h & 0x3ffu) << 13 | (exponent == 31 ? 255 : exponent + 112) << 23;
    float x;
    memcpy(&x, &bits, 4);
    if (!exponent) x = static_cast<float>(h & 0x3ff) * 5.9604644775390625e-8f;
    return h & 0x8000 ? -x : x;
}
static INLINE Floats halves_to_floats(const uint16_t* p) {
    Floats x;
    for (int i = 0; i < LANES; ++i) x[i] = half_to_float(p[i]);
    return x;
}
static INLINE Bytes look_up(Bytes table, Bytes index) {
    Bytes x;
    for (int i = 0; i < 64; ++i) x[i] = table[index[i]];
    return x;
}

#endif

static INLINE Bytes bytes(const uint8_t* p) { return *reinterpret_cast<const LooseBytes*>(p); }
static INLINE Words repeat(const int8_t* p) {
    int32_t x;
    memcpy(&x, p, 4);
    return Words{} + x;
}

static INLINE Floats scales_at(const Matrix& w, int64_t at) {
    if (w.scale_type == FP16) return halves_to_floats(static_cast<const uint16_t*>(w.scales) + at);
    if (w.scale_type == FP32) return floats(static_cast<const float*>(w.scales) + at);
    uint16_t bits[LANES];
    memcpy(bits, static_cast<const uint16_t*>(w.scales) + at, sizeof bits);
    Words wide;
    for (int i = 0; i < LANES; ++i) wide[i] = static_cast<int32_t>(static_cast<uint32_t>(bits[i]) << 16);
    return (Floats)wide;
}

static INLINE Floats zeros_at(const Matrix& w, int64_t at) {
    Floats x;
    for (int i = 0; i < LANES; ++i) x[i] = w.zeros[at + i];
    return x;
}

// The 16 values of NormalFloat times 127, above 128.
static constexpr uint8_t NORMAL[16] = {1, 40, 61, 78, 92, 105, 116, 128, 138, 148, 159, 171, 184, 199, 220, 255};

static INLINE Bytes normal_table() {
    Bytes table;
    for (int i = 0; i < 64; ++i) table[i] = NORMAL[i % 16];
    return table;
}

template <int64_t KIND>
static INLINE void open_halves(const uint8_t* p, Bytes table, Bytes& low, Bytes& high) {
    Bytes both = bytes(p);
    low = both & 15;
    high = (Bytes)((Shorts)both >> 4) & 15;
    if (KIND == LOOKUP) low = look_up(table, low), high = look_up(table, high);
}

static INLINE void store(const Output& out, int64_t row, int64_t o, int64_t O, Floats x) {
    if (o >= O) return;
    float* y = out.y + row * O + o;
    const float* add = out.add ? out.add + row * O + o : nullptr;
    if (o + LANES <= O) {
        if (out.bias) x += floats(out.bias + o);
        if (add) x += floats(add);
        *reinterpret_cast<LooseFloats*>(y) = x;
        return;
    }
    for (int64_t i = 0; i < O - o; ++i) y[i] = x[i] + (out.bias ? out.bias[o + i] : 0) + (add ? add[i] : 0);
}

// What a step of codes takes, asked for. A single row meets them once: they pass all caches but the nearest, and what is
// done between two matrices is still there when its turn comes (an eighth of a step's time). With more rows every second
// line of whole bytes, into the second cache: the processor's own streams fetch the others.
template <int R>
static INLINE void ask(const uint8_t* ahead, bool whole) {
    if (R == 1) {
        UNROLL for (int line = 0; line < 2; ++line) __builtin_prefetch(ahead + 64 * line, 0, 0);
        if (whole) UNROLL for (int line = 2; line < 4; ++line) __builtin_prefetch(ahead + 64 * line, 0, 0);
    } else if (whole) {
        UNROLL for (int line = 0; line < 4; line += 2) __builtin_prefetch(ahead + 64 * line, 0, 2);
    } else {
        UNROLL for (int line = 0; line < 2; ++line) __builtin_prefetch(ahead + 64 * line);
    }
}

// R rows from `row` on times a band, whose codes may lie elsewhere, as another kind. What lies `ahead` is fetched.
template <int R, int64_t KIND>
static void tile(const Matrix& w, const uint8_t* codes, const uint8_t* ahead, int64_t band, const Rows& rows,
                 int64_t row, const Output& out) {
    const Bytes table = normal_table();
    const bool whole = w.kind == BYTES;
    const int8_t* x[R];
    Floats sums[R][2];
    for (int r = 0; r < R; ++r) x[r] = rows.codes + (row + r) * w.columns();
    UNROLL for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = Floats{};
    for (int64_t g = 0; g < w.groups; ++g) {
        Words dots[R][2];
        UNROLL for (int r = 0; r < R; ++r) dots[r][0] = dots[r][1] = Words{} + rows.starts[(row + r) * w.groups + g];
        for (int64_t c = g * w.width; c < (g + 1) * w.width; c += 8) {
            Bytes a[2], b[2];  // the columns from c on, and from c + 4
            UNROLL for (int s = 0; s < 2; ++s) {
                if (KIND == BYTES) {
                    a[s] = bytes(codes + s * 64), b[s] = bytes(codes + 128 + s * 64);
                } else {
                    open_halves<KIND>(codes + s * 64, table, a[s], b[s]);
                }
            }
            if (ahead) {
                ask<R>(ahead, whole);
                ahead += whole ? 256 : 128;
            }
            codes += KIND == BYTES ? 256 : 128;
            UNROLL for (int r = 0; r < R; ++r) {
                Words first = repeat(x[r] + c), second = repeat(x[r] + c + 4);
                UNROLL for (int s = 0; s < 2; ++s) {
                    dots[r][s] = dot(dots[r][s], a[s], first);
                    dots[r][s] = dot(dots[r][s], b[s], second);
                }
            }
        }
        UNROLL for (int s = 0; s < 2; ++s) {
            const int64_t at = (band * w.groups + g) * BAND + s * LANES;
            const Floats scales = scales_at(w, at);
            UNROLL for (int r = 0; r < R; ++r)
                sums[r][s] += __builtin_convertvector(dots[r][s], Floats) * (scales * rows.scales[(row + r) * w.groups + g]);
            if (w.zeros) {
                const Floats lift = scales * zeros_at(w, at);
                UNROLL for (int r = 0; r < R; ++r) sums[r][s] -= lift * rows.sums[(row + r) * w.groups + g];
            }
        }
    }
    UNROLL for (int r = 0; r < R; ++r)
        UNROLL for (int s = 0; s < 2; ++s) store(out, row + r, band * BAND + s * LANES, w.O, sums[r][s]);
}
