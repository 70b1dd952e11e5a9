// Causal depthwise convolution in fp32, forward and backward, in the layout [B, T, C] of the matrices around it.
//
// B batch, T position, C channel, K width. A task is a block of channels of one sequence: its last K rows stay in the
// cache. x, y, dy and dx may be columns of wider matrices: rows lie `*_row`, sequences `*_batch` floats apart.
// No sum depends on the number of threads.

#include <algorithm>
#include <cstdint>

constexpr int64_t BLOCK = 128;  // channels of a task

extern "C" {

// y_t = bias + sum_k kernel_k x_(t - K + 1 + k); kernel [K, C], y contiguous.
void convolution_forward(const float* x, const float* kernel, const float* bias, float* y, int64_t B, int64_t T,
                         int64_t C, int64_t K, int64_t x_batch, int64_t x_row, int64_t threads) {
    const int64_t blocks = (C + BLOCK - 1) / BLOCK;
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
    for (int64_t b = 0; b < B; b++) {
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t first = block * BLOCK, last = std::min(C, first + BLOCK);
            for (int64_t t = 0; t < T; t++) {
                float* out = y + (b * T + t) * C;
                for (int64_t c = first; c < last; c++) out[c] = bias[c];
                for (int64_t k = std::max<int64_t>(0, K - 1 - t); k < K; k++) {
                    const float *in = x + b * x_batch + (t - K + 1 + k) * x_row, *weight = kernel + k * C;
#pragma omp simd
                    for (int64_t c = first; c < last; c++) out[c] += weight[c] * in[c];
                }
            }
        }
    }
}

// dx contiguous; dkernel [B, K, C] and dbias [B, C] are summed over B by the caller.
void convolution_backward(const float* x, const float* kernel, const float* dy, float* dx, float* dkernel, float* dbias,
                          int64_t B, int64_t T, int64_t C, int64_t K, int64_t x_batch, int64_t x_row, int64_t dy_batch,
                          int64_t dy_row, int64_t threads) {
    const int64_t blocks = (C + BLOCK - 1) / BLOCK;
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
    for (int64_t b = 0; b < B; b++) {
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t first = block * BLOCK, last = std::min(C, first + BLOCK);
            float *of_kernel = dkernel + b * K * C, *of_bias = dbias + b * C;
            for (int64_t c = first; c < last; c++) of_bias[c] = 0;
            for (int64_t k = 0; k < K; k++) std::fill(of_kernel + k * C + first, of_kernel + k * C + last, 0.0f);
            for (int64_t t = 0; t < T; t++) {
                const float *grad = dy + b * dy_batch + t * dy_row, *in = x + b * x_batch + t * x_row;
                float* out = dx + (b * T + t) * C;
#pragma omp simd
                for (int64_t c = first; c < last; c++) of_bias[c] += grad[c];
                for (int64_t c = first; c < last; c++) out[c] = 0;
                for (int64_t k = 0; k < K; k++) {  // x_t meets kernel_k in y_(t + K - 1 - k)
                    if (t + K - 1 - k >= T) continue;
                    const float *later = grad + (K - 1 - k) * dy_row, *weight = kernel + k * C;
                    float* sum = of_kernel + k * C;
#pragma omp simd
                    for (int64_t c = first; c < last; c++) {
                        out[c] += weight[c] * later[c];
                        sum[c] += in[c] * later[c];
                    }
                }
            }
        }
    }
}

}  // extern "C"
