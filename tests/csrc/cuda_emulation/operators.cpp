// The operators of csrc/cuda as they are, host code and kernels, on the CPU: registered
// for the library `fedclip_emulated`, which the tests define with the same schemas.
#define FEDCLIP_EXPORT extern "C" __attribute__((visibility("default")))

#include "adapter.cu"
#include "distances.cu"
#include "local_round.cu"
#include "register.h"
#include "support.cu"
#include "weighted_mean.cu"

namespace emulation {

Device device;
cudaError_t last_error = cudaSuccess;
std::string failure;

}  // namespace emulation

STABLE_TORCH_LIBRARY_IMPL(fedclip_emulated, CPU, m) {
    FEDCLIP_IMPL_PRODUCTS(m);
    FEDCLIP_IMPL_LISTS(m);
}

// The device, to be set and read by the tests; what is in it stays from call to call.
FEDCLIP_EXPORT std::int64_t* emulated_device() {
    return &emulation::device.multiprocessors;
}

FEDCLIP_EXPORT int emulated_error() { return cudaGetLastError(); }

// Asks anew which devices there is code for.
FEDCLIP_EXPORT void emulated_forget() { fedclip::gpu::known.clear(); }

FEDCLIP_EXPORT void emulate_round_bf16(float* value) {
    *value = fedclip::gpu::round_bf16(*value);
}

// How a round is laid out: features of a block, blocks of a group, resident slabs;
// bytes of shared memory, whether it is a fast one.
FEDCLIP_EXPORT void emulated_shape(std::int64_t dim, std::int64_t blocks,
                                   std::int64_t shared_bytes, std::int64_t group,
                                   std::int64_t* found) {
    const fedclip::gpu::Shape shape = fedclip::gpu::choose_shape(
        int(dim), int(blocks), shared_bytes / std::int64_t(sizeof(float)), int(group));
    found[0] = shape.features, found[1] = shape.group, found[2] = shape.resident;
    found[3] = shape.shared_floats() * std::int64_t(sizeof(float));
    found[4] = shape.fast();
}
