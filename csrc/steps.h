// What the CPU and the CUDA kernels share of a training step's numbers.  Plain C++.
#pragma once

#include <cmath>
#include <cstdint>

namespace fedclip {

inline std::int64_t steps_of(std::int64_t samples, std::int64_t batch_size) {
    if (batch_size < 2) return 0;  // a trailing batch of 1 is skipped
    return samples / batch_size + (samples % batch_size > 1);
}

// What changes with Adam's step t, from 1: torch.optim.Adam's
//   lr / (1 - beta1^t) * m / (sqrt(v) / root + eps),  root = sqrt(1 - beta2^t),
// is rate * m / (sqrt(v) + eps) with these.
struct AdamStep {
    float rate, eps;
};

inline AdamStep adam_step(double lr, double beta1, double beta2, double eps,
                          std::int64_t t) {
    const double root = std::sqrt(1 - std::pow(beta2, double(t)));
    return {float(lr * root / (1 - std::pow(beta1, double(t)))), float(eps * root)};
}

}  // namespace fedclip
