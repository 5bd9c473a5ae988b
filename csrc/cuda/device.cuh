// What the kernels use of CUDA C++ beyond the language.  Without a GPU they are
// compiled as plain C++ against tests/csrc/cuda_emulation/emulation.h instead.
#pragma once

#ifdef FEDCLIP_EMULATION
#include "emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace fedclip {

__device__ inline float* dynamic_shared() {
    extern __shared__ float4 shared[];
    return reinterpret_cast<float*>(shared);
}

// Nearest bfloat16, ties to even.
__device__ inline float round_bf16(float value) {
    const unsigned short bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
    return __uint_as_float(unsigned(bits) << 16);
}

// Adds 1; what this block wrote before is visible to who sees the new value.
__device__ inline void arrive(unsigned* counter) {
    asm volatile("red.release.gpu.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}

__device__ inline unsigned arrived(const unsigned* counter) {
    unsigned value;
    asm volatile("ld.acquire.gpu.u32 %0, [%1];"
                 : "=r"(value)
                 : "l"(counter)
                 : "memory");
    return value;
}

}  // namespace fedclip
#endif

namespace fedclip {

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

}  // namespace fedclip
