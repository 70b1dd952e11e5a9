// Rows times matrices of few bits: rows are rounded to 8 bits by group, products are summed as whole numbers within a
// group and as floats over groups. See quantized.h for the order of the codes, quantized.py for the plain twin. No sum
// depends on the number of threads.

#include "norm.h"
#include "pool.h"
#include "quantized.h"

#include <limits>

#include <vector>

struct Source {
    const float* x;     // [M, I]
    const float* norm;  // weights of an RMS norm, or null
    double eps;
};

// ---- rows

// n <= width floats to whole numbers of at most 127 and their scale; a row that is not finite gets no finite scale.
static void round_group(const float* x, int64_t n, int64_t width, int8_t* codes, float& scale, int32_t& sum) {
    Ints most{};  // of what floats are as whole numbers, without the sign: in their order, infinity and NaN above all
    for (int64_t i = 0; i < n; i += L) {
        const Ints v = (Ints)some(x + i, n - i) & 0x7fffffff;
        most = most > v ? most : v;
    }
    int32_t highest = 0;
    for (int k = 0; k < L; ++k) highest = std::max(highest, most[k]);
    float peak;
    memcpy(&peak, &highest, 4);
    sum = 0;
    if (highest >= 0x7f800000) {
        scale = std::numeric_limits<float>::quiet_NaN();
        std::fill(codes, codes + width, int8_t(0));
        return;
    }
    const bool counts = peak > 1e-36f;  // less would overflow when divided by
    scale = counts ? peak / 127 : 0;
    const float factor = counts ? 127 / peak : 0;
    int64_t i = 0;
#if defined(__AVX512F__) && defined(__AVX512BW__)
    __m512i total = _mm512_setzero_si512();
    for (; i < width; i += L) {
        const __m512i q = _mm512_cvtps_epi32((__m512)(i < n ? some(x + i, n - i) * factor : Vec{}));
        total = _mm512_add_epi32(total, q);
        const __m128i small = _mm512_cvtepi32_epi8(q);
        memcpy(codes + i, &small, std::min<int64_t>(L, width - i));
    }
    sum = _mm512_reduce_add_epi32(total);
#else
    for (; i < width; ++i) {
        codes[i] = static_cast<int8_t>(i < n ? std::nearbyint(x[i] * factor) : 0);
        sum += codes[i];
    }
#endif
}

static void round_row(const Matrix& w, const float* x, const Rows& rows, int64_t row) {
    for (int64_t g = 0; g < w.groups; ++g) {
        const int64_t from = g * w.group, n = std::min(w.group, w.I - from), at = row * w.groups + g;
        int32_t sum;
        round_group(x + from, n, w.width, rows.codes + row * w.columns() + g * w.width, rows.scales[at], sum);
        rows.starts[at] = w.zeros ? 0 : -static_cast<int32_t>(w.zero) * sum;
        rows.sums[at] = w.zeros ? rows.scales[at] * sum : 0;
        if (w.kind == LOOKUP) rows.scales[at] /= 127;
    }
}

// A row of the source as the matrix wants it; `spare` holds 2 I floats.
static void prepare(const Matrix& w, const Source& from, const Rows& rows, int64_t row, float* spare) {
    const float* x = from.x + row * w.I;
    if (from.norm) {
        norm_row(x, from.norm, spare, w.I, from.eps);
        x = spare;
    }
    if (w.order || w.in_scales) {
        float* turned = spare + w.I;
        for (int64_t i = 0; i < w.I; ++i) turned[i] = x[w.order ? w.order[i] : i] * (w.in_scales ? w.in_scales[i] : 1);
        x = turned;
    }
    if (w.kind != FLOAT8) return round_row(w, x, rows, row);
    for (int64_t g = 0; g < w.groups; ++g) {
        const int64_t n = std::min(w.group, w.I - g * w.group);
        float* to = std::copy(x + g * w.group, x + g * w.group + n, rows.floats + row * w.columns() + g * w.width);
        std::fill(to, to + w.width - n, 0.0f);
    }
}

// ---- products

// Bytes of what was kept as halves: one band, in the order of bytes.
template <int64_t KIND>
static void open_band(const uint8_t* from, uint8_t* to, int64_t columns) {
    const Bytes table = normal_table();
    for (int64_t c = 0; c < columns; c += 8, from += 128, to += 256)
        for (int s = 0; s < 2; ++s) {
            Bytes low, high;
            open_halves<KIND>(from + 64 * s, table, low, high);
            *reinterpret_cast<LooseBytes*>(to + 64 * s) = low;
            *reinterpret_cast<LooseBytes*>(to + 128 + 64 * s) = high;
        }
}

// The floats that 16 codes of 8 bits are, over 256: a sign, 4 bits of exponent and 3 of mantissa, as a half has them.
static INLINE Floats open_floats(const uint8_t* p) {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
    const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x80)), 8);
    const __m256i rest = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x7f)), 7);
    return (Floats)_mm512_cvtph_ps(_mm256_or_si256(sign, rest));
#else
    uint16_t half[LANES];
    for (int i = 0; i < LANES; ++i) half[i] = static_cast<uint16_t>((p[i] & 0x80) << 8 | (p[i] & 0x7f) << 7);
    return halves_to_floats(half);
#endif
}

template <int R>
static void tile_floats(const Matrix& w, int64_t band, const Rows& rows, int64_t row, const Output& out) {
    const uint8_t* codes = w.codes + band * w.band_bytes();
    const float* x = rows.floats + row * w.columns();
    Floats sums[R][2];
    UNROLL for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = Floats{};
    for (int64_t g = 0; g < w.groups; ++g) {
        Floats dots[R][2];
        UNROLL for (int r = 0; r < R; ++r) dots[r][0] = dots[r][1] = Floats{};
        for (int64_t c = g * w.width; c < (g + 1) * w.width; ++c, codes += BAND) {
            const Floats a = open_floats(codes), b = open_floats(codes + LANES);
            UNROLL for (int r = 0; r < R; ++r) {
                dots[r][0] += a * x[r * w.columns() + c];
                dots[r][1] += b * x[r * w.columns() + c];
            }
        }
        UNROLL for (int s = 0; s < 2; ++s) {
            const Floats scales = 256.0f * scales_at(w, (band * w.groups + g) * BAND + s * LANES);
            UNROLL for (int r = 0; r < R; ++r) sums[r][s] += dots[r][s] * scales;
        }
    }
    UNROLL for (int r = 0; r < R; ++r)
        UNROLL for (int s = 0; s < 2; ++s) store(out, row + r, band * BAND + s * LANES, w.O, sums[r][s]);
}

template <int R>
static void tile_of(const Matrix& w, int64_t kind, const uint8_t* codes, const uint8_t* ahead, int64_t band,
                    const Rows& rows, int64_t row, const Output& out) {
    if (kind == FLOAT8) tile_floats<R>(w, band, rows, row, out);
    else if (kind == BYTES) tile<R, BYTES>(w, codes, ahead, band, rows, row, out);
    else if (kind == HALVES) tile<R, HALVES>(w, codes, ahead, band, rows, row, out);
    else tile<R, LOOKUP>(w, codes, ahead, band, rows, row, out);
}

constexpr int64_t AHEAD = 4096, FAR_AHEAD = 8192;  // bytes: for a single row, for more

// Rows [from, to) times one band. Halves that meet more than two tiles are opened once, into `spare`.
static void band_rows(const Matrix& w, int64_t band, const Rows& rows, int64_t from, int64_t to, const Output& out,
                      uint8_t* spare) {
    const uint8_t* codes = w.codes + band * w.band_bytes();
    // AHEAD bytes on, or where the codes are opened before they are used, all of the next band
    const bool opened = (w.kind == HALVES || w.kind == LOOKUP) && to - from > 2 * MOST;
    const uint8_t* ahead = codes + (opened ? w.band_bytes() : to - from == 1 ? AHEAD : FAR_AHEAD);
    int64_t kind = w.kind;
    if (opened) {
        if (kind == HALVES) open_band<HALVES>(codes, spare, w.columns());
        else open_band<LOOKUP>(codes, spare, w.columns());
        codes = spare, kind = BYTES;
    }
    for (int64_t tiles = (to - from + MOST - 1) / MOST; tiles > 0; --tiles) {
        const int64_t take = (to - from + tiles - 1) / tiles;
        if (take == 1) tile_of<1>(w, kind, codes, ahead, band, rows, from, out);
        else if (take == 2) tile_of<2>(w, kind, codes, ahead, band, rows, from, out);
        else if (take == 3) tile_of<3>(w, kind, codes, ahead, band, rows, from, out);
        else if (take == 4) tile_of<4>(w, kind, codes, ahead, band, rows, from, out);
        else if (take == 5) tile_of<5>(w, kind, codes, ahead, band, rows, from, out);
        else tile_of<6>(w, kind, codes, ahead, band, rows, from, out);
        from += take, ahead = nullptr;
    }
}

// ---- memory that a thread keeps between calls

struct Keep {
    std::vector<char> memory;
    char* take(int64_t bytes) {
        if (static_cast<int64_t>(memory.size()) < bytes + 64) memory.resize(bytes + 64);
        return reinterpret_cast<char*>(up(reinterpret_cast<int64_t>(memory.data()), 64));
    }
};
static thread_local Keep kept_rows, kept_spare;

static int64_t rows_bytes(const Matrix& w, int64_t M) {
    if (w.kind == FLOAT8) return M * w.columns() * 4;
    return up(M * w.columns(), 64) + 3 * up(M * w.groups * 4, 64);
}

static Rows rows_in(const Matrix& w, int64_t M, char* p) {
    if (w.kind == FLOAT8) return {nullptr, nullptr, nullptr, nullptr, reinterpret_cast<float*>(p)};
    const int64_t codes = up(M * w.columns(), 64), one = up(M * w.groups * 4, 64);
    float *scales = reinterpret_cast<float*>(p + codes), *sums = reinterpret_cast<float*>(p + codes + 2 * one);
    return {reinterpret_cast<int8_t*>(p), scales, reinterpret_cast<int32_t*>(p + codes + one), sums, nullptr};
}

// ---- one matrix

constexpr int64_t SHARED_FROM = 8192;    // numbers from which threads share the preparation of rows
constexpr int64_t IN_CACHE = 512 << 10;  // bytes of prepared rows that stay near while bands pass

static void multiply(const Matrix& w, const Source& from, int64_t M, const Output& out, int64_t threads) {
    const Rows rows = rows_in(w, M, kept_rows.take(rows_bytes(w, M)));
    const auto spare = [&] { return kept_spare.take(std::max(8 * w.I, w.columns() * BAND)); };
    share(M, M * w.I < SHARED_FROM ? 1 : threads,
          [&](int64_t row) { prepare(w, from, rows, row, reinterpret_cast<float*>(spare())); });
    const int64_t block = std::max<int64_t>(MOST, down(IN_CACHE / w.columns(), MOST)), bands = w.bands();
    const int64_t take = std::max<int64_t>(1, bands / (threads * 8)), pieces = (bands + take - 1) / take;
    for (int64_t begin = 0; begin < M; begin += block)
        share(pieces, threads, [&](int64_t piece) {
            uint8_t* const open = reinterpret_cast<uint8_t*>(spare());
            for (int64_t band = piece * take; band < std::min(bands, (piece + 1) * take); ++band)
                band_rows(w, band, rows, begin, std::min(M, begin + block), out, open);
        });
}

constexpr int64_t ROWS = 512;  // of a call's pieces

// y [M, O] = (normed) x times w (+ add)
extern "C" void quantized_linear(const Matrix* w, const float* x, const float* norm, double eps, const float* add,
                                 float* y, int64_t M, int64_t threads) {
    for (; M > ROWS; M -= ROWS, x += ROWS * w->I, y += ROWS * w->O, add = add ? add + ROWS * w->O : add)
        quantized_linear(w, x, norm, eps, add, y, ROWS, threads);
    const Output out{y, w->bias, add};
    multiply(*w, {x, norm, eps}, M, out, threads);
}
