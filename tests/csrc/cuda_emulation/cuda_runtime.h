// Enough of CUDA's runtime for the host code of csrc/cuda: memory is the host's, a
// kernel runs to its end in its launch, and a `Device` says what a GPU would.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstring>
#include <string>
#include <tuple>
#include <utility>

#include "emulation.h"

enum cudaError_t {
    cudaSuccess,
    cudaErrorInvalidValue,
    cudaErrorNoKernelImageForDevice,
    cudaErrorCooperativeLaunchTooLarge,
    cudaErrorLaunchFailure
};
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount,
    cudaDevAttrMaxSharedMemoryPerBlockOptin,
    cudaDevAttrCooperativeLaunch
};
enum cudaStreamCaptureStatus {
    cudaStreamCaptureStatusNone,
    cudaStreamCaptureStatusActive
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
using cudaStream_t = void*;

struct cudaFuncAttributes {
    int ptxVersion;
};
struct dim3 {
    unsigned x;
    explicit dim3(unsigned blocks) : x(blocks) {}
};

namespace emulation {

struct Device {
    std::int64_t multiprocessors = 6, shared_bytes = 1 << 20;
    std::int64_t granted = 1 << 20;  // blocks of a cooperative launch
    std::int64_t cooperative = 1, capturing = 0, has_code = 1;
    std::int64_t capability = 9;    // of the code that runs, its major number
    std::int64_t seed = 0;          // of the order of threads
    std::int64_t launches = 0;      // so far
    std::int64_t blocks = 0;        // of the last cooperative launch that ran
    std::int64_t shared_asked = 0;  // its bytes
    std::int64_t refused = 0;       // launches of more blocks than are granted
};
extern Device device;

// What no call clears by itself: code that leaves an error behind is found out.
extern cudaError_t last_error;
extern std::string failure;  // of the last kernel

inline cudaError_t raise(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

template <class... P, std::size_t... I>
cudaError_t run(void (*kernel)(P...), unsigned blocks, unsigned threads,
                void** arguments, std::size_t shared_bytes, std::index_sequence<I...>) {
    ++device.launches;
    failure = launch(
        blocks, threads, std::int64_t((shared_bytes + 3) / 4),
        std::uint64_t(device.seed),
        [&] { kernel(*static_cast<std::remove_reference_t<P>*>(arguments[I])...); });
    return raise(failure.empty() ? cudaSuccess : cudaErrorLaunchFailure);
}

}  // namespace emulation

inline cudaError_t cudaGetLastError() {
    return std::exchange(emulation::last_error, cudaSuccess);
}

inline const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaErrorNoKernelImageForDevice:
            return "no kernel image is available for execution on the device";
        case cudaErrorCooperativeLaunchTooLarge:
            return "too many blocks in cooperative launch";
        case cudaErrorLaunchFailure:
            return emulation::failure.c_str();
        default:
            return "invalid argument";
    }
}

inline cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
    const emulation::Device& device = emulation::device;
    *value = int(which == cudaDevAttrMultiProcessorCount ? device.multiprocessors
                 : which == cudaDevAttrCooperativeLaunch ? device.cooperative
                                                         : device.shared_bytes);
    return cudaSuccess;
}

inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* found) {
    *found = emulation::device.capturing ? cudaStreamCaptureStatusActive
                                         : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

// What waits for the device, or copies from memory that may be gone, ends a capture.
inline cudaError_t not_captured() {
    return emulation::raise(emulation::device.capturing ? cudaErrorInvalidValue
                                                        : cudaSuccess);
}

inline cudaError_t cudaMemsetAsync(void* at, int value, std::size_t size,
                                   cudaStream_t) {
    std::memset(at, value, size);
    return cudaSuccess;
}

inline cudaError_t cudaMemcpy(void* to, const void* from, std::size_t size,
                              cudaMemcpyKind) {
    if (size) std::memcpy(to, from, size);
    return not_captured();
}

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t size,
                                   cudaMemcpyKind kind, cudaStream_t) {
    return cudaMemcpy(to, from, size, kind);
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return not_captured(); }

template <class... P>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, void (*)(P...)) {
    found->ptxVersion = int(emulation::device.capability) * 10;
    return emulation::raise(
        emulation::device.has_code ? cudaSuccess : cudaErrorNoKernelImageForDevice);
}

template <class... P>
cudaError_t cudaFuncSetAttribute(void (*)(P...), cudaFuncAttribute, int bytes) {
    return emulation::raise(
        bytes <= emulation::device.shared_bytes ? cudaSuccess : cudaErrorInvalidValue);
}

template <class... P>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*)(P...),
                                                          int, std::size_t) {
    *blocks = 1;
    return cudaSuccess;
}

template <class... P>
cudaError_t cudaLaunchKernel(void (*kernel)(P...), dim3 blocks, dim3 threads,
                             void** arguments, std::size_t shared_bytes, cudaStream_t) {
    if (blocks.x == 0) return emulation::raise(cudaErrorInvalidValue);
    return emulation::run(kernel, blocks.x, threads.x, arguments, shared_bytes,
                          std::index_sequence_for<P...>());
}

template <class... P>
cudaError_t cudaLaunchCooperativeKernel(void (*kernel)(P...), dim3 blocks, dim3 threads,
                                        void** arguments, std::size_t shared_bytes,
                                        cudaStream_t) {
    emulation::Device& device = emulation::device;
    if (blocks.x > device.granted) {
        ++device.refused;
        return emulation::raise(cudaErrorCooperativeLaunchTooLarge);
    }
    device.blocks = blocks.x;
    device.shared_asked = std::int64_t(shared_bytes);
    return emulation::run(kernel, blocks.x, threads.x, arguments, shared_bytes,
                          std::index_sequence_for<P...>());
}

inline AOTITorchError emulated_stream(std::int32_t, void** stream) {
    *stream = nullptr;
    return 0;
}
#define aoti_torch_get_current_cuda_stream emulated_stream
