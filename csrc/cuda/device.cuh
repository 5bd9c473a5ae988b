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

// The number of this thread, and a value that it has already: what follows from them is
// worked out again where it is used.  A training step would otherwise keep hundreds of
// addresses from its first phase to its last, more than there are registers.
__device__ inline int thread() {
    int number;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(number));
    return number;
}
__device__ inline void renew(int& value) { asm volatile("" : "+r"(value)); }

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

// Nearest number of 11 bits; a NaN may become -0, but `value` minus it is still NaN.
__device__ inline float round_tf32(float value) {
    return __uint_as_float((__float_as_uint(value) + 0x1000u) & 0xffffe000u);
}

#if __CUDA_ARCH__ >= 800
constexpr bool kTensorCores = true;
#else
constexpr bool kTensorCores = false;  // of float32
#endif

// d (16, 8) += a (16, 8) b (8, 8) on a tensor core: a warp's work; see tensor.cuh.
__device__ inline void multiply(float (&d)[4], const float (&a)[4],
                                const float (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])),
          "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
          "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
#endif
}

// Starts a copy of 4 or 16 aligned bytes to shared memory, or of zeros: the thread goes
// on, and waits for its copies in groups.
template <int Bytes>
__device__ inline void start_copy(float* to, const float* from, bool zeros) {
#if __CUDA_ARCH__ >= 800
    const auto at = static_cast<unsigned>(__cvta_generic_to_shared(to));
    const int size = zeros ? 0 : Bytes;
    if (Bytes == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at),
                     "l"(from), "r"(size)
                     : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(at),
                     "l"(from), "r"(size)
                     : "memory");
    }
#else
    if (Bytes == 16) {
        float4 v = make_float4(0, 0, 0, 0);
        if (!zeros) v = *reinterpret_cast<const float4*>(from);
        *reinterpret_cast<float4*>(to) = v;
    } else {
        *to = zeros ? 0.f : *from;
    }
#endif
}

// What was started since the last commit becomes a group.
__device__ inline void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most the last `Pending` groups of this thread are under way.
template <int Pending>
__device__ inline void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#endif
}

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

// Sums and maxima over a warp, or over each half of it, the same in every lane.
template <int Lanes = 32, class T>
__device__ inline T warp_sum(T value) {
    for (int lanes = Lanes / 2; lanes; lanes /= 2) {
        value += __shfl_xor_sync(kWholeWarp, value, lanes);
    }
    return value;
}

template <int Lanes = 32>
__device__ inline float warp_max(float value) {
    for (int lanes = Lanes / 2; lanes; lanes /= 2) {
        value = fmaxf(value, __shfl_xor_sync(kWholeWarp, value, lanes));
    }
    return value;
}

constexpr float kLowest = -3.402823466e38f;  // finite: e^(u - lowest) is never NaN
constexpr float kNormFloor = 1e-12f;  // a feature row of zeros gives z = 0, not NaN

}  // namespace fedclip::gpu
