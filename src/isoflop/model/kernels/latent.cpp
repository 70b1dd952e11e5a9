// One token of each of several sequences through latent attention, up to its last matrix (DeepSeek-V2, arXiv 2405.04434,
// section 2.1.2): queries are brought into the latents' space, where latents are keys and values at once.
//
// N row, H head, A d_nope, P d_rope, V d_value, R kv_rank, Q q_rank, D = R + P. No row depends on the rows beside it or on
// the number of threads.

#include "one_query.h"
#include "part.h"
#include "pool.h"

// Packed by latent.py, in this order.
struct Latent {
    Linear down, up;  // to the queries' latent, or null; from there, or from x, to queries
    void (*attend)(const Rows*);
    void (*normalize)(const float* x, const float* weight, float* y, int64_t M, int64_t N, double eps, int64_t threads);
    const float *q_norm, *kv_norm;  // [Q], [R]
    const float* key_value;         // [H, A + V, R]: what makes keys and values of latents
    int64_t H, A, P, V, R, Q, C, interleaved;
    double norm_eps;
    Rows rows;  // what stays the same of what is attended

    int64_t D() const { return R + P; }
};

static INLINE float rounded(float x) {  // torch's turns round both products, and so does this
#if defined(__x86_64__)
    asm("" : "+x"(x));
#endif
    return x;
}

static void turn_pairs(float* x, const float* cos, const float* sin, int64_t C, bool interleaved) {
    const int64_t step = interleaved ? 2 : 1, other = interleaved ? 1 : C;
    for (int64_t i = 0; i < C; ++i) {
        const float a = x[i * step], b = x[i * step + other];
        x[i * step] = rounded(a * cos[i]) - rounded(b * sin[i]);
        x[i * step + other] = rounded(b * cos[i]) + rounded(a * sin[i]);
    }
}

constexpr int TILE = 4;  // rows that meet a matrix at once

// to[r] = sum over a of x[r][a] times row a of the matrix [A, R], for N rows
template <int N>
static void combine(const float* const* x, const float* matrix, int64_t A, int64_t R, float* const* to) {
    for (int64_t c = 0; c < R; c += 4 * L) {
        const int64_t left = R - c, vectors = std::min<int64_t>(4, (left + L - 1) / L);
        Vec sums[N][4] = {};
        for (int64_t a = 0; a < A; ++a)
            for (int64_t v = 0; v < vectors; ++v) {
                const Vec row = some(matrix + a * R + c + v * L, left - v * L);
                UNROLL for (int n = 0; n < N; ++n) sums[n][v] += x[n][a] * row;
            }
        for (int n = 0; n < N; ++n) memcpy(to[n] + c, sums[n], 4 * std::min<int64_t>(4 * L, left));
    }
}

// to[r][v] = x[r] times row v of the matrix [V, R], for N rows
template <int N>
static void products(const float* const* x, const float* matrix, int64_t V, int64_t R, float* const* to) {
    for (int64_t v = 0; v < V; ++v) {
        Vec sums[N] = {};
        for (int64_t c = 0; c < R; c += L) {
            const Vec row = some(matrix + v * R + c, R - c);
            UNROLL for (int n = 0; n < N; ++n) sums[n] += some(x[n] + c, R - c) * row;
        }
        UNROLL for (int n = 0; n < N; ++n) to[n][v] = total(sums[n]);
    }
}

// function<rows>(rows' numbers, matrix, ..): all rows of a head, a tile at a time; `from` and `to` say where a row's lie
template <class From, class To, class Function>
static void tiles(int64_t N, const From& from, const To& to, const Function& function) {
    for (int64_t n = 0; n < N; n += TILE) {
        const float* x[TILE];
        float* y[TILE];
        const int64_t rows = std::min<int64_t>(TILE, N - n);
        for (int64_t i = 0; i < rows; ++i) x[i] = from(n + i), y[i] = to(n + i);
        function(rows, x, y);
    }
}

// What makes keys and values of latents, [H, A + V, R], met by queries and by mixed latents of N rows
struct Heads {
    int64_t H, A, P, V, R;
    const float* key_value;

    // q [N, H, A + P] to [N, H, R + P], one head of it
    void into_latents(int64_t h, const float* q, float* queries, int64_t N) const {
        const int64_t from = A + P, to = R + P;
        for (int64_t n = 0; n < N; ++n)
            memcpy(queries + (n * H + h) * to + R, q + (n * H + h) * from + A, 4 * P);
        const float* const matrix = key_value + h * (A + V) * R;
        tiles(
            N, [&](int64_t n) { return q + (n * H + h) * from; }, [&](int64_t n) { return queries + (n * H + h) * to; },
            [&](int64_t rows, const float* const* x, float* const* y) {
                if (rows == 4) combine<4>(x, matrix, A, R, y);
                else if (rows == 3) combine<3>(x, matrix, A, R, y);
                else if (rows == 2) combine<2>(x, matrix, A, R, y);
                else combine<1>(x, matrix, A, R, y);
            });
    }

    // mixed [N, H, R] to [N, H, V], one head of it
    void out_of_latents(int64_t h, const float* mixed, float* out, int64_t N) const {
        const float* const matrix = key_value + (h * (A + V) + A) * R;
        tiles(
            N, [&](int64_t n) { return mixed + (n * H + h) * R; }, [&](int64_t n) { return out + (n * H + h) * V; },
            [&](int64_t rows, const float* const* x, float* const* y) {
                if (rows == 4) products<4>(x, matrix, V, R, y);
                else if (rows == 3) products<3>(x, matrix, V, R, y);
                else if (rows == 2) products<2>(x, matrix, V, R, y);
                else products<1>(x, matrix, V, R, y);
            });
    }
};

static thread_local Kept kept;

struct Pass {
    const Latent& l;
    const Tokens& t;
    float *narrow, *q, *keys, *queries, *mixed;  // [N, Q], [N, H, A + P], [N, D], [N, H, D], [N, H, R]

    Pass(const Latent& l, const Tokens& t) : l(l), t(t) {
        const int64_t heads = l.H * (l.A + l.P), a_row = l.Q + heads + l.D() + l.H * (l.D() + l.R);
        float* next = kept.room(t.N * a_row);
        const auto take = [&](int64_t n) { return next += t.N * n, next - t.N * n; };
        narrow = take(l.Q), q = take(heads), keys = take(l.D()), queries = take(l.H * l.D()), mixed = take(l.H * l.R);
    }

    void project(const float* in) const {
        if (l.down.multiply) {
            l.down.multiply(l.down.matrix, t.x, t.norm, t.eps, nullptr, narrow, t.N, t.threads);
            l.up.multiply(l.up.matrix, narrow, l.q_norm, l.norm_eps, nullptr, q, t.N, t.threads);
        } else {
            l.up.multiply(l.up.matrix, t.x, t.norm, t.eps, nullptr, q, t.N, t.threads);
        }
        for (int64_t n = 0; n < t.N; ++n) {
            float* const key = keys + n * l.D();
            l.normalize(in + n * l.D(), l.kv_norm, key, 1, l.R, l.norm_eps, 1);
            memcpy(key + l.R, in + n * l.D() + l.R, 4 * l.P);
            if (t.cos) turn(key + l.R, n);
        }
    }

    void turn(float* x, int64_t n) const { turn_pairs(x, t.cos + n * l.C, t.sin + n * l.C, l.C, l.interleaved); }

    // Of a head: turned parts are copied, the others brought into the latents' space
    void into_latents(int64_t h) const {
        for (int64_t n = 0; n < t.N; ++n) {
            float* const to = q + (n * l.H + h) * (l.A + l.P) + l.A;
            if (t.cos) turn(to, n);
        }
        Heads{l.H, l.A, l.P, l.V, l.R, l.key_value}.into_latents(h, q, queries, t.N);
    }

    void attend() const {
        Rows rows = l.rows;
        rows.q = queries, rows.k = keys, rows.out = mixed, rows.where = t.where, rows.N = t.N, rows.threads = t.threads;
        rows.q_row = l.H * l.D(), rows.k_row = l.D();
        l.attend(&rows);
    }
    void out_of_latents(int64_t h, float* out) const {
        Heads{l.H, l.A, l.P, l.V, l.R, l.key_value}.out_of_latents(h, mixed, out, t.N);
    }
};

extern "C" void latent_mix(const void* mixer, const Tokens& tokens, const float* in, float* out) {
    const Latent& l = *static_cast<const Latent*>(mixer);
    const Pass pass(l, tokens);
    pass.project(in);
    share(l.H, tokens.threads, [&](int64_t h) { pass.into_latents(h); });
    pass.attend();
    share(l.H, tokens.threads, [&](int64_t h) { pass.out_of_latents(h, out); });
}

// For steps that go module by module: the same of rows whose queries are turned already
extern "C" void latent_into(const Heads* heads, const float* q, float* queries, int64_t N, int64_t threads) {
    share(heads->H, threads, [&](int64_t h) { heads->into_latents(h, q, queries, N); });
}

extern "C" void latent_out(const Heads* heads, const float* mixed, float* out, int64_t N, int64_t threads) {
    share(heads->H, threads, [&](int64_t h) { heads->out_of_latents(h, mixed, out, N); });
}
