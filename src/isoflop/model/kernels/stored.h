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

static INLINE void fetch_lines(const void* from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i, 0, 2);
}

// Each has: row(place) of one head's vector; load of the L numbers from d on, of which `left` are there; save; fetch of
// what will be loaded soon, as a head's rows lie too far apart for the processor to guess the next one.
// `heads` vectors of `width` numbers lie at each place.

struct Fp32 {
    float* base;
    int64_t step, width;
    typedef float* Row;

    Fp32(void* codes, void*, int64_t heads, int64_t width, int64_t head)
        : base(static_cast<float*>(codes) + head * width), step(heads * width), width(width) {}
    Row row(int64_t place) const { return base + place * step; }
    Vec load(Row r, int64_t d, int64_t left) const { return some(r + d, left); }
    void save(int64_t place, const float* x) const { memcpy(row(place), x, 4 * width); }
    void fetch(int64_t place) const { fetch_lines(row(place), 4 * width); }
};

struct Bf16 {
    uint16_t* base;
    int64_t step, width;
    typedef uint16_t* Row;
    typedef uint16_t Shorts __attribute__((vector_size(2 * L)));

    Bf16(void* codes, void*, int64_t heads, int64_t width, int64_t head)
        : base(static_cast<uint16_t*>(codes) + head * width), step(heads * width), width(width) {}
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
    void fetch(int64_t place) const { fetch_lines(row(place), 2 * width); }
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
    void fetch(int64_t place) const {
        Row r = row(place);
        fetch_lines(r.codes, n_codes);
        __builtin_prefetch(r.scales);
    }
};

struct Int8 : Coded {
    static constexpr int64_t GROUP = 128;
    typedef uint8_t Bytes __attribute__((vector_size(L)));

    Int8(void* codes, void* scales, int64_t heads, int64_t width, int64_t head)
        : Coded(codes, scales, width, (width + GROUP - 1) / GROUP, heads, head, width) {}
    Vec load(Row r, int64_t d, int64_t left) const {
        Bytes x{};
        if (left >= L) memcpy(&x, r.codes + d, sizeof x);
        else memcpy(&x, r.codes + d, left);
        return (floats(x ^ 128) - 128.0f) * wide(r.scales[d / GROUP]);  // gcc widens signed bytes one by one
    }
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
    typedef uint8_t Bytes __attribute__((vector_size(L)));

    Int4(void* codes, void* scales, int64_t heads, int64_t width, int64_t head)
        : Coded(codes, scales, (width + 1) / 2, (width + GROUP - 1) / GROUP, heads, head, width) {}
    Vec load(Row r, int64_t d, int64_t left) const {
        int64_t g = d / GROUP, inside = d % GROUP;
        const uint8_t* group = r.codes + g * GROUP / 2;
        float scale = wide(r.scales[g]);
        if (width - g * GROUP >= GROUP) {
            Bytes x;
            memcpy(&x, group + inside % (GROUP / 2), L);
            Bytes code = inside < GROUP / 2 ? x & 15 : x >> 4;
            return (floats(code) - 8.0f) * scale;
        }
        Vec y{};
        int64_t half = (width - g * GROUP + 1) / 2;
        for (int64_t i = 0; i < std::min<int64_t>(L, left); ++i) {
            int64_t at = inside + i;
            int code = at < half ? group[at] & 15 : group[at - half] >> 4;
            y[i] = static_cast<float>(code - 8) * scale;
        }
        return y;
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
