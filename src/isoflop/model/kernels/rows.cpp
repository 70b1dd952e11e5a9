// Rows times a matrix as it lies, of fp32 or bf16, summed in fp32: each row of the matrix is fetched once for as many
// rows as stay near. And the norm of rows. Rows that meet a matrix of bf16 are rounded to it first, however many they
// are. No row of y depends on the rows beside it or on the number of threads.

#include <vector>

#include "norm.h"
#include "pool.h"
#include "products.h"

// A matrix as the caller describes it (rows.py packs the same).
struct Matrix {
    const void* weight;  // [O, I]
    const float* bias;   // [O], or null
    int64_t I, O, bf16;
};

// Rows as they come: of fp32, or bf16 if half; to be normed with weights `norm`, or null
struct Source {
    const void* x;
    bool half;
    const float* norm;
    double eps;
};

constexpr int64_t SHARED_FROM = 8192;  // numbers from which threads share the preparation of rows
constexpr int64_t STRIP = 32;          // rows of the matrix that one task takes, at most
constexpr int64_t BLOCK = 512 << 10;   // bytes of rows that stay in the second cache while the matrix passes
constexpr int64_t ROWS = 1024;         // of a call's pieces: what is kept of rows stays small
constexpr int64_t LEAST = 24 * MOST;   // rows of a block, however wide: each reads the matrix anew

// Memory that a thread keeps between calls
struct Kept {
    std::vector<char> memory;
    template <class T>
    T* room(int64_t n) {
        const size_t bytes = n * sizeof(T) + LINE;
        if (memory.size() < bytes) memory.resize(bytes);
        return reinterpret_cast<T*>(up(reinterpret_cast<int64_t>(memory.data()), LINE));
    }
};
static thread_local Kept kept_rows, kept_row, kept_sums;

// A row of the source, as numbers that meet the matrix's
template <class K>
static void prepare(const Source& from, int64_t m, int64_t I, typename K::X* to, int64_t stride) {
    static_assert(LINE % (L * sizeof(typename K::X)) == 0, "a row's last vector stays in its last line");
    const float* x = static_cast<const float*>(from.x) + m * I;
    if (from.half) {
        const uint16_t* halves = static_cast<const uint16_t*>(from.x) + m * I;
        float* wide = kept_row.room<float>(I);
        for (int64_t i = 0; i < I; ++i) wide[i] = widened(halves[i]);
        x = wide;
    }
    if (from.norm) {
        float* normed = kept_row.room<float>(I);
        norm_row(x, from.norm, normed, I, from.eps);
        x = normed;
    }
    int64_t i = 0;
    for (; i < I; i += L) K::put(to + i, some(x + i, I - i));
    std::fill(to + i, to + stride, typename K::X{});
}

template <class K>
static void multiply_rows(const Matrix& w, const Source& from, int64_t M, const float* add, void* y, int64_t threads) {
    typedef typename K::X X;
    const int64_t lines = (w.I * sizeof(X) + LINE - 1) / LINE | 1;  // odd: rows do not lie over each other in a cache
    const int64_t stride = lines * LINE / sizeof(X);
    X* const x = kept_rows.room<X>(M * stride);
    share(M, M * w.I < SHARED_FROM ? 1 : threads, [&](int64_t m) { prepare<K>(from, m, w.I, x + m * stride, stride); });
    const Product p{x, stride, w.weight, w.bias, add, y, from.half, w.I, w.O};
    const int64_t block = std::max<int64_t>(LEAST, down(BLOCK / (lines * LINE), MOST));
    const int64_t strip = std::min(STRIP, std::max(GROUP, down(w.O / (4 * threads), GROUP)));
    const int64_t strips = (w.O + strip - 1) / strip, blocks = (M + block - 1) / block;
    share(strips * blocks, threads, [&](int64_t i) {
        const int64_t m = i / strips * block, m_end = std::min(M, m + block), o = i % strips * strip;
        const int64_t o_end = std::min(w.O, o + strip), step = m_end - m <= MOST ? OUT : GROUP;
        Vec* const kept = kept_sums.room<Vec>(GROUP * (m_end - m));
        for (int64_t g = o; g < o_end; g += step) group<K>(p, m, m_end, g, std::min(o_end, g + step), kept);
    });
}

static void multiply(const Matrix& w, const Source& from, int64_t M, const float* add, void* y, int64_t threads) {
    for (int64_t m = 0; m < M; m += ROWS) {
        const int64_t n = std::min(ROWS, M - m), size = from.half ? 2 : 4;
        const Source rows{static_cast<const char*>(from.x) + m * w.I * size, from.half, from.norm, from.eps};
        char* const to = static_cast<char*>(y) + m * w.O * size;
        const float* const more = add ? add + m * w.O : nullptr;
        const auto of_kind = w.bf16 ? multiply_rows<Halves> : multiply_rows<Singles>;
        of_kind(w, rows, n, more, to, threads);
    }
}

extern "C" {

// y = x / sqrt(mean(x^2) + eps) * weight; x and y [M, N], weight [N]
void rows_norm(const float* x, const float* weight, float* y, int64_t M, int64_t N, double eps, int64_t threads) {
    const int64_t rows = std::max<int64_t>(1, SHARED_FROM / N), pieces = (M + rows - 1) / rows;
    share(pieces, threads, [&](int64_t i) {
        for (int64_t m = i * rows; m < std::min(M, (i + 1) * rows); ++m)
            norm_row(x + m * N, weight, y + m * N, N, eps);
    });
}

// y [M, O] = x (or its RMS norm, with weights `norm`) times the matrix (+ add)
void rows_linear(const Matrix* w, const float* x, const float* norm, double eps, const float* add, float* y, int64_t M,
                 int64_t threads) {
    multiply(*w, {x, false, norm, eps}, M, add, y, threads);
}

// y [M, O] = x times the matrix, both of bf16, summed in fp32
void rows_linear_bf16(const Matrix* w, const uint16_t* x, uint16_t* y, int64_t M, int64_t threads) {
    multiply(*w, {x, true, nullptr, 0}, M, nullptr, y, threads);
}

}  // extern "C"
