// Enough of CUDA C++ to run this project's kernels on a CPU, one fibre for each thread
// of each block.
//
// A seed decides who runs next, so a barrier that is missing between two accesses shows
// as wrong numbers under some seed; it also decides whether a copy to shared memory is
// done when it starts or when it is waited for.  Found out and reported: a barrier or
// shuffle that only a part of the threads reaches, and waiting without end.  Shared
// memory starts as NaN.  Not modelled: caches, the order in which writes become
// visible, anything of speed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>

#define __device__
#define __global__
#define __launch_bounds__(...)
#define __syncthreads() ::emulation::sync_threads(__LINE__)
#define __shfl_xor_sync(mask, value, lanes) \
    ::emulation::shuffle_xor(value, lanes, __LINE__)

struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(4) char4 {
    signed char x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct Index {
    unsigned x;
};
extern Index threadIdx, blockIdx;

namespace emulation {

void sync_threads(int line);
void pause();  // lets others run
float* shared_memory();

// The other lane's eight bytes.
std::uint64_t exchange(std::uint64_t bits, int lanes, int line);

template <class T>
T shuffle_xor(T value, int lanes, int line) {
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    bits = exchange(bits, lanes, line);
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// A warp's d (16, 8) += a (16, 8) b (8, 8) with factors of 11 bits; see tensor.cuh.
void multiply(float (&d)[4], const float (&a)[4], const float (&b)[2]);

// Copies of the current thread, done at once or, as late as it may be, when it waits.
void start_copy(void* to, const void* from, int bytes, bool zeros);
void commit_copies();
void wait_for_copies(std::size_t pending);

// Runs kernel() once for each of `threads` threads of `blocks` blocks, `shared_floats`
// for each of these.  Returns what went wrong, or "".
std::string launch(unsigned blocks, unsigned threads, std::int64_t shared_floats,
                   std::uint64_t seed, const std::function<void()>& kernel);

}  // namespace emulation

namespace fedclip::gpu {

template <class T>
T min(T a, T b) {
    return b < a ? b : a;
}

inline float* dynamic_shared() { return emulation::shared_memory(); }

inline float round_bf16(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits = value == value ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000;
    bits &= 0xffff0000;
    std::memcpy(&value, &bits, sizeof bits);
    return value;
}

inline float root(float value) { return std::sqrt(value); }
inline float quotient(float a, float b) { return a / b; }

inline float round_tf32(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits = (bits + 0x1000) & 0xffffe000;
    std::memcpy(&value, &bits, sizeof bits);
    return value;
}
using emulation::multiply;
constexpr bool kTensorCores = true;
inline int thread() { return int(threadIdx.x); }
inline void renew(int&) {}

template <int Bytes>
void start_copy(float* to, const float* from, bool zeros) {
    emulation::start_copy(to, from, Bytes, zeros);
}
inline void commit_copies() { emulation::commit_copies(); }
template <int Pending>
void wait_for_copies() {
    emulation::wait_for_copies(Pending);
}

inline void arrive(unsigned* counter) { ++*counter; }
inline unsigned arrived(unsigned* counter) {
    emulation::pause();
    return *counter;
}

inline void atomicAdd(int* at, int value) { *at += value; }
inline void atomicMin(unsigned long long* at, unsigned long long value) {
    *at = min(*at, value);
}

}  // namespace fedclip::gpu
