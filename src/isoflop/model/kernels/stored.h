// Vectors of a cache as they are stored, read a register at a time: fp32, bf16, and integers with a scale in fp16 a
// group. The layouts are those of isoflop/engine/store.py.
#pragma once

#include <cmath>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "vectors.h"

typedef uint16_t Half;

static INLINE float wide(Half x) {
#if defined(__F16C__)
    return _cvtsh_ss(x);
#else
    uint32_t sign = static_cast<uint32_t>(x & 0x8000) << 16, rest = x & 0x7fff;
    float magnitude;
    uint32_t bits = rest << 13;
    memcpy(&magnitude, &bits, 4);
    magnitude *= 0x1p112f;  // the exponent's other bias; halves below the normal come out right, too
    memcpy(&bits, &magnitude, 4);
    bits |= sign;
    memcpy(&magnitude, &bits, 4);
    return magnitude;
#endif
}

static INLINE Half narrow(float x) {  // to the nearest, ties to even, as torch
#if defined(__F16C__)
    return _cvtss_sh(x, 0);
#else
    uint32_t bits;
    memcpy(&bits, &x, 4);
    Half sign = static_cast<Half>(bits >> 16 & 0x8000);
    float size = std::fabs(x);
    if (size >= 65520.0f) return sign | 0x7c00;
    if (size < 0x1p-14f) return sign | static_cast<Half>(std::nearbyint(size * 0x1p24f));
    memcpy(&bits, &size, 4);
    bits += 0xfff + (bits >> 13 & 1);
    return sign | static_cast<Half>((bits >> 13) - (112 << 10));
#endif
}

static INLINE float divisor(Half scale) {
    float x = wide(scale);
    return x == 0 ? 1.0f : x;
}

template <class Bytes>
static INLINE Vec floats(Bytes x) {  // in two steps, each an instruction: gcc makes one of many of a single step
    return __builtin_convertvector(__builtin_convertvector(x, Ints), Vec);
}

static INLINE void fetch_lines(const void* from, int64_t bytes) {  // of every second line, half as many come in time
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i, 0, 2);
}

// The part-th of `parts` of some bytes
static INLINE void fetch_part(const void* from, int64_t bytes, int64_t part, int64_t parts) {
    const int64_t size = (bytes / parts + 63) / 64 * 64, begin = part * size;
    fetch_lines(static_cast<const char*>(from) + begin, std::min(size, bytes - begin));
}

// Each has: row(place) of one head's vector; load of the L numbers from d on, of which `left` are there; save. And for
// many products with one: two vectors of numbers at a time, in an order of its own (EVEN_ODD: first those of even places),
// that are still to be multiplied by their group's scale (GROUP; 0: they are not). Tails are as load's.
// `heads` vectors of `width` numbers lie at each place; fetch asks for all of several places, as nobody guesses where the
// next page lies.

struct Fp32 {
    static constexpr int64_t GROUP = 0;
    static constexpr bool EVEN_ODD = false;
    float *all, *base;
    int64_t step, width;
    typedef float* Row;

    Fp32(void* codes, void*, int64_t heads, int64_t width, int64_t head)
        : all(static_cast<float*>(codes)), base(all + head * width), step(heads * width), width(width) {}
    Row row(int64_t place) const { return base + place * step; }
    Vec load(Row r, int64_t d, int64_t left) const { return some(r + d, left); }
    void save(int64_t place, const float* x) const { memcpy(row(place), x, 4 * width); }
    INLINE void pair(Row r, int64_t d, Vec& a, Vec& b) const { a = at(r + d), b = at(r + d + L); }
    INLINE Vec tail(Row r, int64_t d, int64_t left) const { return load(r, d, left); }
    int64_t place_bytes() const { return 4 * step; }
    void fetch(int64_t place, int64_t n, int64_t part, int64_t parts) const {
        fetch_part(all + place * step, 4 * step * n, part, parts);
    }
    void fetch_own(int64_t place, int64_t n) const {
        for (int64_t i = 0; i < n; ++i) fetch_lines(row(place + i), 4 * width);
    }
};

struct Bf16 {
    static constexpr int64_t GROUP = 0;
    static constexpr bool EVEN_ODD = true;
    uint16_t *all, *base;
    int64_t step, width;
    typedef uint16_t* Row;
    typedef uint16_t Shorts __attribute__((vector_size(2 * L)));

    Bf16(void* codes, void*, int64_t heads, int64_t width, int64_t head)
        : all(static_cast<uint16_t*>(codes)), base(all + head * width), step(heads * width), width(width) {}
    Row row(int64_t place) const { return base + place * step; }
    Vec load(Row r, int64_t d, int64_t left) const {
        Shorts x{};
        if (left >= L) memcpy(&x, r + d, sizeof x);
        else memcpy(&x, r + d, 2 * left);
#if defined(__AVX512F__)
        return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)x), 16);
#else
        return (Vec)(__builtin_convertvector(x, Ints) << 16);
#endif
    }
    void save(int64_t place, const float* x) const {
        Row r = row(place);
        for (int64_t d = 0; d < width; ++d) {
            uint32_t bits;
            memcpy(&bits, x + d, 4);
            r[d] = static_cast<uint16_t>(x[d] == x[d] ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0);
        }
    }
    INLINE void pair(Row r, int64_t d, Vec& even, Vec& odd) const {
        const Ints x = (Ints)at(reinterpret_cast<const float*>(r + d));
        even = (Vec)(x << 16), odd = (Vec)(x & static_cast<int32_t>(0xffff0000));
    }
    INLINE Vec tail(Row r, int64_t d, int64_t left) const { return load(r, d, left); }
    int64_t place_bytes() const { return 2 * step; }
    void fetch(int64_t place, int64_t n, int64_t part, int64_t parts) const {
        fetch_part(all + place * step, 2 * step * n, part, parts);
    }
    void fetch_own(int64_t place, int64_t n) const {
        for (int64_t i = 0; i < n; ++i) fetch_lines(row(place + i), 2 * width);
    }
};

struct Coded {  // where codes and scales lie
    uint8_t* codes;
    Half* scales;
    int64_t n_codes, n_scales, heads, head, width;
    struct Row {
        uint8_t* codes;
        Half* scales;
    };

    Coded(void* codes, void* scales, int64_t n_codes, int64_t n_scales, int64_t heads, int64_t head, int64_t width)
        : codes(static_cast<uint8_t*>(codes)), scales(static_cast<Half*>(scales)), n_codes(n_codes),
          n_scales(n_scales), heads(heads), head(head), width(width) {}
    Row row(int64_t place) const {
        int64_t i = place * heads + head;
        return {codes + i * n_codes, scales + i * n_scales};
    }
    int64_t groups() const { return n_scales; }
    int64_t place_bytes() const { return heads * n_codes; }
    void fetch(int64_t place, int64_t n, int64_t part, int64_t parts) const {
        fetch_part(codes + place * heads * n_codes, n * heads * n_codes, part, parts);
        if (part == 0) fetch_lines(scales + place * heads * n_scales, 2 * n * heads * n_scales);
    }
    void fetch_own(int64_t place, int64_t n) const {
        for (int64_t i = 0; i < n; ++i) fetch_lines(row(place + i).codes, n_codes);
        fetch_lines(scales + place * heads * n_scales, 2 * n * heads * n_scales);
    }
    // Of the g-th group at n places from `place` on; n up to L
    INLINE Vec group_scales(int64_t place, int64_t n, int64_t g) const {
        const int64_t first = (place * heads + head) * n_scales + g, step = heads * n_scales;
#if defined(__AVX512F__)
        if (n == L) {  // by pairs of halves, the first of which is even
            const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            const __m512i at = _mm512_add_epi32(_mm512_mullo_epi32(lane, _mm512_set1_epi32(static_cast<int>(step))),
                                                _mm512_set1_epi32(static_cast<int>(first & 1)));
            const __m512i two = _mm512_i32gather_epi32(_mm512_srli_epi32(at, 1), scales + (first & ~INT64_C(1)), 4);
            const __m512i odd = _mm512_slli_epi32(_mm512_and_si512(at, _mm512_set1_epi32(1)), 4);
            return (Vec)_mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srlv_epi32(two, odd)));
        }
#endif
        Vec x{};
        for (int64_t i = 0; i < n; ++i) x[i] = wide(scales[first + i * step]);
        return x;
    }
};

struct Int8 : Coded {
    static constexpr int64_t GROUP = 128;
    static constexpr bool EVEN_ODD = false;
    typedef uint8_t Bytes __attribute__((vector_size(L)));

    Int8(void* codes, void* scales, int64_t heads, int64_t width, int64_t head)
        : Coded(codes, scales, width, (width + GROUP - 1) / GROUP, heads, head, width) {}
    Vec load(Row r, int64_t d, int64_t left) const { return tail(r, d, left) * wide(r.scales[d / GROUP]); }
    INLINE Vec tail(Row r, int64_t d, int64_t left) const {
        Bytes x{};
        if (left >= L) memcpy(&x, r.codes + d, sizeof x);
        else memcpy(&x, r.codes + d, left);
#if defined(__AVX512F__)
        return __builtin_convertvector((Ints)_mm512_cvtepi8_epi32((__m128i)x), Vec);
#else
        return floats(x ^ 128) - 128.0f;  // gcc widens signed bytes one by one
#endif
    }
    INLINE void pair(Row r, int64_t d, Vec& a, Vec& b) const { a = tail(r, d, L), b = tail(r, d + L, L); }
    void save(int64_t place, const float* x) const {
        Row r = row(place);
        for (int64_t d = 0; d < width; d += GROUP) {
            int64_t n = std::min(GROUP, width - d);
            float most = 0;
            for (int64_t i = 0; i < n; ++i) most = std::max(most, std::fabs(x[d + i]));
            Half scale = r.scales[d / GROUP] = narrow(most / 127.0f);
            for (int64_t i = 0; i < n; ++i) {
                float code = std::nearbyint(x[d + i] / divisor(scale));
                r.codes[d + i] = static_cast<uint8_t>(static_cast<int8_t>(std::min(127.0f, std::max(-127.0f, code))));
            }
        }
    }
};

struct Int4 : Coded {
    static constexpr int64_t GROUP = 32;
    static constexpr bool EVEN_ODD = false;
    typedef uint8_t Bytes __attribute__((vector_size(L)));

    Int4(void* codes, void* scales, int64_t heads, int64_t width, int64_t head)
        : Coded(codes, scales, (width + 1) / 2, (width + GROUP - 1) / GROUP, heads, head, width) {}
    Vec load(Row r, int64_t d, int64_t left) const { return tail(r, d, left) * wide(r.scales[d / GROUP]); }
    INLINE Vec tail(Row r, int64_t d, int64_t left) const {
        int64_t g = d / GROUP, inside = d % GROUP;
        const uint8_t* group = r.codes + g * GROUP / 2;
        if (width - g * GROUP >= GROUP) {
            Bytes x;
            memcpy(&x, group + inside % (GROUP / 2), L);
            Bytes code = inside < GROUP / 2 ? x & 15 : x >> 4;
            return floats(code) - 8.0f;
        }
        Vec y{};
        int64_t half = (width - g * GROUP + 1) / 2;
        for (int64_t i = 0; i < std::min<int64_t>(L, left); ++i) {
            int64_t at = inside + i;
            y[i] = static_cast<float>((at < half ? group[at] & 15 : group[at - half] >> 4) - 8);
        }
        return y;
    }
    INLINE void pair(Row r, int64_t d, Vec& a, Vec& b) const {
#if defined(__AVX512F__)
        const __m512 values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
        const __m512i x = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(r.codes + d / 2)));
        a = (Vec)_mm512_permutexvar_ps(x, values), b = (Vec)_mm512_permutexvar_ps(_mm512_srli_epi32(x, 4), values);
#else
        a = tail(r, d, L), b = tail(r, d + L, L);
#endif
    }
    void save(int64_t place, const float* x) const {
        Row r = row(place);
        for (int64_t g = 0; g * GROUP < width; ++g) {
            int64_t n = std::min(GROUP, width - g * GROUP), half = (n + 1) / 2;
            const float* from = x + g * GROUP;
            float largest = from[0];
            for (int64_t i = 1; i < n; ++i)
                if (std::fabs(from[i]) > std::fabs(largest)) largest = from[i];
            Half scale = r.scales[g] = narrow(largest / -8.0f);
            auto code = [&](int64_t i) {
                float q = std::nearbyint(from[i] / divisor(scale)) + 8.0f;
                return static_cast<uint8_t>(std::min(15.0f, std::max(0.0f, q)));
            };
            for (int64_t i = 0; i < half; ++i)
                r.codes[g * GROUP / 2 + i] = code(i) | static_cast<uint8_t>(half + i < n ? code(half + i) << 4 : 0);
        }
    }
};
