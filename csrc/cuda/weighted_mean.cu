// The operators `weighted_mean` and `weighted_mean_int8`: the clients' tensors are read
// where they are, through a table of pointers.
#include "launch.h"
#include "mean.cuh"
#include "ops.h"

namespace fedclip {

using namespace gpu;

namespace {

// `scales` is empty or has a client's scale for each row of `columns`.
template <class T>
void run_mean(const Launch& launch, const std::vector<const T*>& data,
              const std::vector<double>& shares,
              const std::vector<const float*>& scales, std::int64_t columns,
              const Tensor& mean) {
    const std::int64_t size = mean.numel(), clients = std::int64_t(data.size());
    if (size == 0) return;
    Tables tables;
    const std::size_t xs = tables.add(data), of_shares = tables.add(shares),
                      of_scales = tables.add(scales);
    tables.send(launch, mean);
    const Shares factors{tables.at<double>(of_shares),
                         scales.empty() ? nullptr : tables.at<const float*>(of_scales)};
    const bool vectors = aligned(data, Four::width * sizeof(T)) &&
                         (scales.empty() || columns % Four::width == 0);
    const auto kernel = vectors ? mean_of<Four, T> : mean_of<One, T>;
    const unsigned blocks =
        blocks_for(size, kThreads * (vectors ? Four::width : One::width));
    launch.run(kernel, blocks, 0, tables.at<const T*>(xs), factors, clients, size,
               columns, mean.mutable_data_ptr<float>());
}

}  // namespace

Tensor weighted_mean(Tensors& xs, const Tensor& weights) {
    check(!xs.empty(), "xs: expected at least one tensor, got none");
    const Launch launch("weighted_mean", xs[0]);
    launch.refuse_capture();  // the table's memory on the host is gone at a replay
    expect_like_first("xs", xs, ScalarType::Float);
    const std::vector<double> shares = shares_of(weights, xs.size());
    const auto data = pointers<float>(xs);
    const Tensor mean = torch::stable::new_empty(xs[0], xs[0].sizes());
    run_mean(launch, data, shares, {}, 1, mean);
    let_go(xs);
    return mean;
}

Tensor weighted_mean_int8(Tensors& qs, Tensors& scales, const Tensor& weights) {
    check(!qs.empty(), "qs: expected at least one tensor, got none");
    const Launch launch("weighted_mean_int8", qs[0]);
    launch.refuse_capture();
    const std::int64_t rows = expect_scaled(qs, scales);
    const std::vector<double> shares = shares_of(weights, qs.size());
    const auto data = pointers<signed char>(qs);
    const auto scale = pointers<float>(scales);
    const Tensor mean = torch::stable::new_empty(scales[0], qs[0].sizes());
    run_mean(launch, data, shares, scale, rows ? mean.numel() / rows : 1, mean);
    let_go(qs, scales);
    return mean;
}

}  // namespace fedclip
