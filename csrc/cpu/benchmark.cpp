// For benchmarks and tests, torch.ops.fedclip_benchmark: ceilings of this machine, and
// the size of teams.
#include <torch/csrc/stable/library.h>

#include "cpu/kernels.h"
#include "cpu/team.h"
#include "tensors.h"

namespace fedclip::cpu {
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

// Sets the members of a team, 0 for as many as the caches ask for; what it was before.
std::int64_t set_team(std::int64_t members) {
    check(members >= 0, "members: expected at least 0, got ", members);
    const std::int64_t before = team_size();
    set_team_size(members);
    return before;
}

}  // namespace
}  // namespace fedclip::cpu

STABLE_TORCH_LIBRARY(fedclip_benchmark, m) {
    m.def("fma_peak(int rounds) -> int");
    m.def("read(Tensor[] xs) -> Tensor");
    m.def("team_size(int members) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(fedclip_benchmark, CompositeExplicitAutograd, m) {
    m.impl("fma_peak", TORCH_BOX(&fedclip::cpu::fma_peak));
    m.impl("read", TORCH_BOX(&fedclip::cpu::read));
    m.impl("team_size", TORCH_BOX(&fedclip::cpu::set_team));
}
