// In place of PyTorch's: one device, which is always the current one.
#pragma once

#include <cstdint>

namespace torch::stable::accelerator {

using DeviceIndex = std::int32_t;

class DeviceGuard {
  public:
    explicit DeviceGuard(std::int32_t) {}
};

inline std::int32_t getCurrentDeviceIndex() { return 0; }

}  // namespace torch::stable::accelerator
