// Squared lengths of the clients' tensors, read in place.  Four squares are summed in
// float32 (of int8: exactly) and then in float64.
#pragma once

#include "mean.cuh"

namespace fedclip::gpu {

constexpr std::int64_t kPart = 16 * 4 * kThreads;  // elements of a block

// |x - origin|^2 of up to 4 elements from k on.
struct Distance {
    const float* const* xs;
    const float* origin;
    bool vectors;  // all pointers are aligned to 4 elements

    __device__ double of(std::int64_t client, std::int64_t k, int count) const {
        const float* x = xs[client];
        float sum = 0;
        if (vectors && count == 4) {
            const float4 a = load_vector(x + k), b = load_vector(origin + k);
            const float d[4] = {a.x - b.x, a.y - b.y, a.z - b.z, a.w - b.w};
            for (int i = 0; i < 4; ++i) sum = fmaf(d[i], d[i], sum);
            return double(sum);
        }
        for (int i = 0; i < count; ++i) {
            const float d = x[k + i] - origin[k + i];
            sum = fmaf(d, d, sum);
        }
        return double(sum);
    }
};

// |scale q|^2 of up to 4 elements from k on, in rows of `columns`.
struct Norm {
    const signed char* const* qs;
    const float* const* scales;
    std::int64_t columns;
    bool vectors;  // as above, and 4 elements are of one row

    __device__ double of(std::int64_t client, std::int64_t k, int count) const {
        const signed char* q = qs[client] + k;
        const float* scale = scales[client];
        if (vectors && count == 4) {
            const char4 v = *reinterpret_cast<const char4*>(q);
            const int sum = v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
            const double s = double(scale[k / columns]);
            return s * s * sum;
        }
        double sum = 0;
        for (int i = 0; i < count; ++i) {
            const double s = double(scale[(k + i) / columns]);
            sum += s * s * (q[i] * q[i]);
        }
        return sum;
    }
};

// found (clients, parts): a block sums kPart elements of a client.  Shared memory has
// a double for each warp.
template <class Squares>
__global__ void __launch_bounds__(kThreads)
    sum_squares(Squares squares, std::int64_t size, std::int64_t parts, double* found) {
    const std::int64_t client = blockIdx.x / parts, part = blockIdx.x % parts;
    const std::int64_t end = min(size, (part + 1) * kPart);
    double sum = 0;
    for (std::int64_t k = part * kPart + 4 * threadIdx.x; k < end; k += 4 * kThreads) {
        sum += squares.of(client, k, int(min(std::int64_t(4), end - k)));
    }
    double* sums = reinterpret_cast<double*>(dynamic_shared());
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x) return;
    for (int w = 1; w < kWarps; ++w) sum += sums[w];
    found[blockIdx.x] = sum;
}

}  // namespace fedclip::gpu
