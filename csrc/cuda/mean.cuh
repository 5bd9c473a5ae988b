// Weighted means over clients, read in place.  Groups of 8 clients are summed in
// float32 and the groups in float64, in client order: memory speed, and an order of
// magnitude more exact than float32 for many clients.
#pragma once

#include "device.cuh"
#include "plan.h"

namespace fedclip::gpu {

constexpr int kGroup = 8;  // clients, as in ops/means.py

// 4 elements of a client from element k on, as floats.
__device__ inline float4 load_vector(const float* p) {
    return *reinterpret_cast<const float4*>(p);
}
__device__ inline float4 load_vector(const signed char* p) {
    const char4 v = *reinterpret_cast<const char4*>(p);
    return make_float4(v.x, v.y, v.z, v.w);
}

__device__ inline void store(float* out, float4 v) {
    *reinterpret_cast<float4*>(out) = v;
}
__device__ inline void store(float* out, float v) { *out = v; }

// The arithmetic of one element and of four.
struct One {
    static constexpr int width = 1;
    float sum = 0;
    double total = 0;

    template <class T>
    static __device__ float load(const T* p) {
        return float(*p);
    }
    __device__ void add(float share, float v) { sum = fmaf(share, v, sum); }
    __device__ void end_group() {
        total += double(sum);
        sum = 0;
    }
    __device__ float result() const { return float(total); }
};

struct Four {
    static constexpr int width = 4;
    One x, y, z, w;

    template <class T>
    static __device__ float4 load(const T* p) {
        return load_vector(p);
    }
    __device__ void add(float share, float4 v) {
        x.add(share, v.x), y.add(share, v.y), z.add(share, v.z), w.add(share, v.w);
    }
    __device__ void end_group() {
        x.end_group(), y.end_group(), z.end_group(), w.end_group();
    }
    __device__ float4 result() const {
        return make_float4(x.result(), y.result(), z.result(), w.result());
    }
};

// Client i's weight for an element of row r: shares[i], or shares[i] * scales[i][r].
struct Shares {
    const double* shares;
    const float* const* scales;  // null: no scales

    __device__ float of(std::int64_t client, std::int64_t row) const {
        if (!scales) return float(shares[client]);
        return float(shares[client] * double(scales[client][row]));
    }
};

template <class Sum, class T>
__device__ inline void mean_at(const T* const* xs, const Shares& shares,
                               std::int64_t clients, std::int64_t k, std::int64_t row,
                               float* out) {
    Sum sum;
    std::int64_t i = 0;
    for (; i + kGroup <= clients; i += kGroup) {
        decltype(Sum::load(xs[0])) values[kGroup];
#pragma unroll
        for (int g = 0; g < kGroup; ++g) values[g] = Sum::load(xs[i + g] + k);
#pragma unroll
        for (int g = 0; g < kGroup; ++g) sum.add(shares.of(i + g, row), values[g]);
        sum.end_group();
    }
    for (; i < clients; ++i) sum.add(shares.of(i, row), Sum::load(xs[i] + k));
    sum.end_group();
    store(out + k, sum.result());
}

// out (size,) in rows of `columns`.  With Sum = Four all pointers are aligned to 4
// elements and, if there are scales, columns is a multiple of 4; the last elements are
// done one by one.
template <class Sum, class T>
__global__ void __launch_bounds__(kThreads)
    mean_of(const T* const* xs, Shares shares, std::int64_t clients, std::int64_t size,
            std::int64_t columns, float* out) {
    const std::int64_t k =
        (std::int64_t(blockIdx.x) * kThreads + threadIdx.x) * Sum::width;
    if (k + Sum::width <= size) {
        mean_at<Sum>(xs, shares, clients, k, shares.scales ? k / columns : 0, out);
        return;
    }
    for (std::int64_t at = k; at < size; ++at) {
        mean_at<One>(xs, shares, clients, at, shares.scales ? at / columns : 0, out);
    }
}

}  // namespace fedclip::gpu
