// Whether this build has code for a GPU.
#pragma once

#include <cstdint>
#include <string>

namespace fedclip::gpu {

// Why the kernels cannot run on a device, as CUDA says it; "" where they can.  Asked
// once a device: an older GPU than those that the module was built for, or an older
// driver, has no code, and the PyTorch references serve it.
const std::string& refusal(std::int32_t device);

}  // namespace fedclip::gpu
