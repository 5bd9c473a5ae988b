// The operators `weighted_mean` and `weighted_mean_int8`: the clients' tensors are read
// where they are.  An element is summed in client order within a block of fixed bounds,
// so the result does not depend on the number of threads.
#include <algorithm>

#include "cpu/kernels.h"
#include "ops.h"
#include "tensors.h"

namespace fedclip {

using namespace cpu;

namespace {

std::int64_t parts_of(std::int64_t size, std::int64_t part) {
    return (size + part - 1) / part;
}

constexpr std::int64_t kGrain = 1;  // blocks worth a thread

}  // namespace

Tensor weighted_mean(Tensors& xs, const Tensor& weights) {
    expect_like_first("xs", xs, ScalarType::Float);
    const std::vector<double> shares = shares_of(weights, xs.size());
    const std::vector<float> factors(shares.begin(), shares.end());
    const auto data = pointers<float>(xs);
    const std::int64_t clients = std::int64_t(xs.size());
    Tensor mean = torch::stable::new_empty(xs[0], xs[0].sizes());
    float* out = mean.mutable_data_ptr<float>();
    const std::int64_t size = mean.numel();
    torch::stable::parallel_for(
        0, parts_of(size, kMeanBlock), kGrain,
        [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t block = begin; block < end; ++block) {
                const std::int64_t first = block * kMeanBlock;
                kernels().mean(data.data(), factors.data(), clients, first,
                               std::min(kMeanBlock, size - first), out);
            }
        });
    let_go(xs);
    return mean;
}

Tensor weighted_mean_int8(Tensors& qs, Tensors& scales, const Tensor& weights) {
    const std::int64_t rows = expect_scaled(qs, scales);
    const std::int64_t clients = std::int64_t(qs.size());
    const std::vector<double> shares = shares_of(weights, qs.size());
    const auto data = pointers<signed char>(qs);
    const auto scale = pointers<float>(scales);
    Tensor mean = torch::stable::new_empty(scales[0], qs[0].sizes());
    float* out = mean.mutable_data_ptr<float>();
    if (mean.numel() == 0) return mean;

    // A block is some whole rows, or a part of one row.
    const std::int64_t columns = mean.numel() / rows;
    const std::int64_t height = std::max<std::int64_t>(1, kMeanBlock / columns);
    const std::int64_t width = std::min(columns, kMeanBlock);
    const std::int64_t across = parts_of(columns, width), down = parts_of(rows, height);
    torch::stable::parallel_for(
        0, down * across, kGrain, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t b = begin; b < end; ++b) {
                const std::int64_t top = b / across * height, left = b % across * width;
                kernels().mean_int8(data.data(), scale.data(), shares.data(), clients,
                                    top, std::min(height, rows - top),
                                    std::min(width, columns - left),
                                    top * columns + left, out);
            }
        });
    let_go(qs, scales);
    return mean;
}

}  // namespace fedclip
