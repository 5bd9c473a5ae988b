// Ceilings of this machine, for benchmarks/: torch.ops.fedclip_benchmark.
#include <torch/csrc/stable/library.h>

#include "cpu/kernels.h"
#include "tensors.h"

namespace fedclip {
namespace {

// Floating-point operations of `rounds` rounds of register FMAs, done on one thread.
std::int64_t fma_peak(std::int64_t rounds) {
    volatile float sum = kernels().fma_peak(rounds);
    (void)sum;
    return rounds * kPeakFmas * kernels().lanes * 2;
}

// Reads all tensors once, on the threads of PyTorch's pool.
Tensor read(std::vector<Tensor> xs) {
    check(!xs.empty(), "xs: expected at least one tensor, got none");
    for (Tensor& x : xs) x = row_major(x);
    Tensor sums = torch::stable::new_empty(xs[0], {std::int64_t(xs.size())});
    float* out = sums.mutable_data_ptr<float>();
    torch::stable::parallel_for(
        0, std::int64_t(xs.size()), 1, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t i = begin; i < end; ++i) {
                out[i] = kernels().read(floats(xs[i]), xs[i].numel());
            }
        });
    return sums;
}

}  // namespace
}  // namespace fedclip

STABLE_TORCH_LIBRARY(fedclip_benchmark, m) {
    m.def("fma_peak(int rounds) -> int");
    m.def("read(Tensor[] xs) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fedclip_benchmark, CompositeExplicitAutograd, m) {
    m.impl("fma_peak", TORCH_BOX(&fedclip::fma_peak));
    m.impl("read", TORCH_BOX(&fedclip::read));
}
