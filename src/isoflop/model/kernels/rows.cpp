// A few rows times a matrix as it lies, of fp32 or bf16, summed in fp32: each row of the matrix is read once for up to 4
// rows, from near for the next 4. And the norm of rows. No sum depends on the number of threads.

#include <cmath>
#include <vector>

#include "pool.h"
#include "vectors.h"

// A matrix as the caller describes it (rows.py packs the same).
struct Matrix {
    const void* weight;  // [O, I]
    const float* bias;   // [O], or null
    int64_t I, O, bf16;
};

struct Call {
    const float* x;  // [M, I]
    const void* weight;
    const float *bias, *add;  // add [M, O], or null; may be y
    float* y;                 // [M, O]
    int64_t M, I, O;
};

constexpr int TILE = 4;         // rows of either side
constexpr int64_t STRIP = 32;   // rows of the matrix that one task takes

template <int N>
static INLINE Vec weights(const void* p, int64_t at_, int64_t n);

template <>
INLINE Vec weights<4>(const void* p, int64_t at_, int64_t n) {
    return some(static_cast<const float*>(p) + at_, n);
}

template <>
INLINE Vec weights<2>(const void* p, int64_t at_, int64_t n) {  // a bf16 is the upper half of a float
    typedef uint16_t Short __attribute__((vector_size(2 * L)));
    Short x{};
    memcpy(&x, static_cast<const uint16_t*>(p) + at_, n >= L ? sizeof x : 2 * n);
#if defined(__AVX512F__)
    return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)x), 16);
#else
    return (Vec)(__builtin_convertvector(x, Ints) << 16);
#endif
}

static INLINE float total(Vec x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#else
    UNROLL for (int half = L / 2; half > 0; half /= 2)
        UNROLL for (int k = 0; k < half; ++k) x[k] += x[k + half];
    return x[0];
#endif
}

// OUT rows of the matrix from `o` on times R rows of x from `m` on.
template <int SIZE, int R, int OUT>
static void tile(const Call& c, int64_t m, int64_t o) {
    Vec sums[OUT][R];
    UNROLL for (int i = 0; i < OUT; ++i)
        UNROLL for (int r = 0; r < R; ++r) sums[i][r] = Vec{};
    const float* x = c.x + m * c.I;
    const char* w = static_cast<const char*>(c.weight) + o * c.I * SIZE;
    const char* next = w + OUT * c.I * SIZE;
    int64_t k = 0;
    for (; k + L <= c.I; k += L) {
        Vec a[OUT];
        UNROLL for (int i = 0; i < OUT; ++i) a[i] = weights<SIZE>(w + i * c.I * SIZE, k, L);
        if (SIZE == 4 || k % (2 * L) == 0)  // lines of the next tile, in the order in which they lie
            UNROLL for (int i = 0; i < OUT; ++i) __builtin_prefetch(next + k * OUT * SIZE + i * 64);
        UNROLL for (int r = 0; r < R; ++r) {
            const Vec b = at(x + r * c.I + k);
            UNROLL for (int i = 0; i < OUT; ++i) sums[i][r] += a[i] * b;
        }
    }
    if (k < c.I)
        UNROLL for (int i = 0; i < OUT; ++i)
            UNROLL for (int r = 0; r < R; ++r)
                sums[i][r] += weights<SIZE>(w + i * c.I * SIZE, k, c.I - k) * some(x + r * c.I + k, c.I - k);
    UNROLL for (int i = 0; i < OUT; ++i)
        UNROLL for (int r = 0; r < R; ++r) {
            const int64_t at = (m + r) * c.O + o + i;
            c.y[at] = total(sums[i][r]) + (c.bias ? c.bias[o + i] : 0) + (c.add ? c.add[at] : 0);
        }
}

template <int SIZE, int OUT>
static void all_rows(const Call& c, int64_t o) {
    int64_t m = 0;
    for (; m + TILE <= c.M; m += TILE) tile<SIZE, TILE, OUT>(c, m, o);
    if (c.M - m == 3) tile<SIZE, 3, OUT>(c, m, o);
    else if (c.M - m == 2) tile<SIZE, 2, OUT>(c, m, o);
    else if (c.M - m == 1) tile<SIZE, 1, OUT>(c, m, o);
}

template <int SIZE>
static void strip(const Call& c, int64_t from) {
    const int64_t to = std::min(c.O, from + STRIP);
    int64_t o = from;
    for (; o + TILE <= to; o += TILE) all_rows<SIZE, TILE>(c, o);
    for (; o < to; ++o) all_rows<SIZE, 1>(c, o);
}

extern "C" {

// y = x / sqrt(mean(x^2) + eps) * weight; x and y [M, N], weight [N]
void rows_norm(const float* x, const float* weight, float* y, int64_t M, int64_t N, double eps) {
    for (int64_t m = 0; m < M; ++m, x += N, y += N) {
        Vec sums[4] = {};
        int64_t i = 0;
        for (; i + 4 * L <= N; i += 4 * L)
            UNROLL for (int k = 0; k < 4; ++k) sums[k] += at(x + i + k * L) * at(x + i + k * L);
        for (; i < N; i += L) sums[0] += some(x + i, N - i) * some(x + i, N - i);
        const float squares = total((sums[0] + sums[1]) + (sums[2] + sums[3]));
        const float factor = 1 / std::sqrt(squares / static_cast<float>(N) + static_cast<float>(eps));
        for (i = 0; i + L <= N; i += L) put(y + i, at(x + i) * factor * at(weight + i));
        for (; i < N; ++i) y[i] = x[i] * factor * weight[i];
    }
}

// y [M, O] = x (or its RMS norm, with weights `norm`) times the matrix (+ add)
void rows_linear(const Matrix* w, const float* x, const float* norm, double eps, const float* add, float* y, int64_t M,
                 int64_t threads) {
    static thread_local std::vector<float> normed;
    if (norm) {
        if (normed.size() < static_cast<size_t>(M * w->I)) normed.resize(M * w->I);
        rows_norm(x, norm, normed.data(), M, w->I, eps);
        x = normed.data();
    }
    const Call c{x, w->weight, w->bias, add, y, M, w->I, w->O};
    share((w->O + STRIP - 1) / STRIP, threads,
          [&](int64_t i) { w->bf16 ? strip<2>(c, i * STRIP) : strip<4>(c, i * STRIP); });
}

}  // extern "C"
