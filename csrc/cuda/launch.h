// The host's side of a launch: device and stream of the caller, errors, small tables.
//
// Nothing here needs the syntax of CUDA C++: the tests compile this file against
// tests/csrc/cuda_emulation/cuda_runtime.h and run the operators without a GPU.
#pragma once

#include <cuda_runtime.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <tuple>

#include "plan.h"
#include "tensors.h"
#include "torch_calls.h"

namespace fedclip::gpu {

inline void check_cuda(const char* op, cudaError_t error) {
    if (error == cudaSuccess) return;
    (void)cudaGetLastError();  // or the next call of anybody would report it
    check(false, op, ": CUDA: ", cudaGetErrorString(error));
}

// Makes the device of an operator's first tensor the current one, as long as it lives.
class Launch {
  public:
    Launch(const char* op, const Tensor& first)
        : op_(op),
          guard_(first.is_cuda()
                     ? first.get_device_index()
                     : torch::stable::accelerator::getCurrentDeviceIndex()) {
        void* stream = nullptr;
        const int device = torch::stable::accelerator::getCurrentDeviceIndex();
        STABLE_TORCH_ERROR_CODE_CHECK(
            aoti_torch_get_current_cuda_stream(device, &stream));
        stream_ = static_cast<cudaStream_t>(stream);
    }
    cudaStream_t stream() const { return stream_; }
    void check(cudaError_t error) const { check_cuda(op_, error); }

    // Blocks of kThreads run `kernel` with these arguments.
    template <class... Parameters, class... Arguments>
    void run(void (*kernel)(Parameters...), unsigned blocks, std::size_t shared_bytes,
             Arguments... arguments) const {
        std::tuple<Parameters...> values(arguments...);
        std::apply(
            [&](auto&... value) {
                void* pointers[] = {&value...};
                check(cudaLaunchKernel(kernel, dim3(blocks), dim3(kThreads), pointers,
                                       shared_bytes, stream_));
            },
            values);
    }

    int attribute(cudaDeviceAttr which) const {
        int device = 0, value = 0;
        check(cudaGetDevice(&device));
        check(cudaDeviceGetAttribute(&value, which, device));
        return value;
    }
    // To be called first: what a capture does not allow ends it.
    void refuse_capture() const {
        cudaStreamCaptureStatus status;
        check(cudaStreamIsCapturing(stream_, &status));
        fedclip::check(status == cudaStreamCaptureStatusNone, op_,
                       ": cannot be captured in a CUDA graph");
    }

    // Device memory, in the order of the stream: free to be used again by what the
    // stream runs after the tensor is gone.
    Tensor bytes(const Tensor& like, std::size_t size) const {
        return torch::stable::new_empty(like, {std::int64_t(size)}, ScalarType::Byte);
    }
    Tensor filled(const Tensor& like, std::size_t size, int value) const {
        const Tensor memory = bytes(like, size);
        check(cudaMemsetAsync(memory.mutable_data_ptr(), value, size, stream_));
        return memory;
    }

  private:
    const char* op_;
    torch::stable::accelerator::DeviceGuard guard_;
    cudaStream_t stream_ = nullptr;
};

// Arrays of the host that go to the device in one copy.
class Tables {
  public:
    // The offset of an array, for `at` when it is there.
    template <class T>
    std::size_t add(const std::vector<T>& values) {
        const std::size_t start = (host_.size() + 15) / 16 * 16;
        const char* data = reinterpret_cast<const char*>(values.data());
        host_.resize(start);
        host_.insert(host_.end(), data, data + values.size() * sizeof(T));
        return start;
    }
    void send(const Launch& launch, const Tensor& like) {
        device_ = launch.bytes(like, host_.size() + 1);
        // from pageable memory: it is copied before the call returns
        launch.check(cudaMemcpyAsync(device_.mutable_data_ptr(), host_.data(),
                                     host_.size(), cudaMemcpyHostToDevice,
                                     launch.stream()));
    }
    template <class T>
    const T* at(std::size_t offset) const {
        const char* start = static_cast<const char*>(device_.const_data_ptr());
        return reinterpret_cast<const T*>(start + offset);
    }

  private:
    std::vector<char> host_;
    Tensor device_;
};

inline unsigned blocks_for(std::int64_t units, std::int64_t of_block) {
    return static_cast<unsigned>((units + of_block - 1) / of_block);
}

// Whether every pointer is a multiple of `bytes`.
template <class T>
bool aligned(const std::vector<const T*>& pointers, std::size_t bytes) {
    return std::all_of(pointers.begin(), pointers.end(), [&](const T* p) {
        return reinterpret_cast<std::uintptr_t>(p) % bytes == 0;
    });
}

}  // namespace fedclip::gpu
