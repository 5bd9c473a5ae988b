// What the kernels use of CUDA C++ beyond the language.  Without a GPU they are
// compiled as plain C++ against tests/csrc/cuda_emulation/emulation.h instead.
#pragma once

#ifdef FEDCLIP_EMULATION
#include "emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cuda/atomic>

namespace fedclip::gpu {

__device__ inline float* dynamic_shared() {
    extern __shared__ float4 shared[];
    return reinterpret_cast<float*>(shared);
}

// Nearest bfloat16, ties to even.
__device__ inline float round_bf16(float value) {
    const unsigned short bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
    return __uint_as_float(unsigned(bits) << 16);
}

// Within 2 units of the last place, as the quotient is; exact for 0, infinity and NaN.
__device__ inline float root(float value) {
    float root;
    asm("sqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(value));
    return root;
}
__device__ inline float quotient(float a, float b) { return __fdividef(a, b); }

using Counter = cuda::atomic_ref<unsigned, cuda::thread_scope_device>;

// Adds 1; what this block wrote before is visible to who sees the new value.
__device__ inline void arrive(unsigned* counter) {
    Counter(*counter).fetch_add(1, cuda::memory_order_release);
}

__device__ inline unsigned arrived(unsigned* counter) {
    return Counter(*counter).load(cuda::memory_order_acquire);
}

}  // namespace fedclip::gpu
#endif

namespace fedclip::gpu {

constexpr unsigned kWholeWarp = 0xffffffffu;

// Sums and maxima over a warp, the same in every lane.
__device__ inline float warp_sum(float value) {
    for (int lanes = 16; lanes; lanes /= 2) {
        value += __shfl_xor_sync(kWholeWarp, value, lanes);
    }
    return value;
}

__device__ inline double warp_sum(double value) {
    for (int lanes = 16; lanes; lanes /= 2) {
        value += __shfl_xor_sync(kWholeWarp, value, lanes);
    }
    return value;
}

__device__ inline float warp_max(float value) {
    for (int lanes = 16; lanes; lanes /= 2) {
        value = fmaxf(value, __shfl_xor_sync(kWholeWarp, value, lanes));
    }
    return value;
}

constexpr float kLowest = -3.402823466e38f;  // finite: e^(u - lowest) is never NaN
constexpr float kNormFloor = 1e-12f;  // a feature row of zeros gives z = 0, not NaN

}  // namespace fedclip::gpu
