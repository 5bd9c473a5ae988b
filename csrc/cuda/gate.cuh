// What stands between the products of the operators `adapter` and `adapter_backward`.
// A warp has a row; its lanes take every 32nd element, also where they read what they
// wrote.
#pragma once

#include "device.cuh"
#include "plan.h"

namespace fedclip::gpu {

// The row of this warp, or `rows` or more.
__device__ inline std::int64_t row_of_warp() {
    return std::int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
}

// a (N, D) -> tanh(a + bias), in place.
__global__ void __launch_bounds__(kThreads)
    tanh_rows(float* a, const float* bias, std::int64_t rows, std::int64_t dim) {
    const std::int64_t row = row_of_warp();
    if (row >= rows) return;
    float* line = a + row * dim;
    for (std::int64_t k = threadIdx.x % 32; k < dim; k += 32) {
        line[k] = tanhf(line[k] + bias[k]);
    }
}

// u (N, D) without its bias -> z = normalize(exp(u + bias - max) x), in place.
__global__ void __launch_bounds__(kThreads)
    gate_scores(float* u, const float* bias, const float* x, std::int64_t rows,
                std::int64_t dim) {
    const std::int64_t row = row_of_warp();
    if (row >= rows) return;
    const int lane = threadIdx.x % 32;
    float* line = u + row * dim;
    const float* input = x + row * dim;
    float top = kLowest, square = 0;
    for (std::int64_t k = lane; k < dim; k += 32) top = fmaxf(top, line[k] + bias[k]);
    top = warp_max(top);
    for (std::int64_t k = lane; k < dim; k += 32) {
        const float q = expf(line[k] + bias[k] - top) * input[k];
        line[k] = q;
        square = fmaf(q, q, square);
    }
    const float norm = sqrtf(warp_sum(square));
    // not fmaxf, which would turn NaN into the floor
    const float inverse = 1.f / (norm < kNormFloor ? kNormFloor : norm);
    for (std::int64_t k = lane; k < dim; k += 32) line[k] *= inverse;
}

// du = z (dz - z <z, dz>), (N, D).
__global__ void __launch_bounds__(kThreads)
    grad_scores(const float* dz, const float* z, float* du, std::int64_t rows,
                std::int64_t dim) {
    const std::int64_t row = row_of_warp();
    if (row >= rows) return;
    const int lane = threadIdx.x % 32;
    const float *grad = dz + row * dim, *value = z + row * dim;
    float dot = 0;
    for (std::int64_t k = lane; k < dim; k += 32) dot = fmaf(grad[k], value[k], dot);
    dot = warp_sum(dot);
    for (std::int64_t k = lane; k < dim; k += 32) {
        du[row * dim + k] = value[k] * (grad[k] - value[k] * dot);
    }
}

// grad (N, D) of h -> da = (grad + extra) (1 - h^2), in place; extra may be null.
__global__ void __launch_bounds__(kThreads)
    grad_hidden(float* grad, const float* extra, const float* h, std::int64_t rows,
                std::int64_t dim) {
    const std::int64_t row = row_of_warp();
    if (row >= rows) return;
    for (std::int64_t k = threadIdx.x % 32; k < dim; k += 32) {
        const std::int64_t at = row * dim + k;
        const float sum = extra ? grad[at] + extra[at] : grad[at];
        grad[at] = sum * (1 - h[at] * h[at]);
    }
}

}  // namespace fedclip::gpu
