// The operators `squared_distances` and `squared_norms_int8`.
#include "cpu/kernels.h"
#include "ops.h"
#include "tensors.h"

namespace fedclip {

using namespace cpu;

Tensor squared_distances(Tensors& xs, const Tensor& origin) {
    xs.push_back(origin);  // of the same type and shape
    expect_like_first("xs", xs, ScalarType::Float);
    const auto data = pointers<float>(xs);
    const std::int64_t clients = std::int64_t(xs.size()) - 1, size = origin.numel();
    Tensor found = torch::stable::new_empty(origin, {clients}, ScalarType::Double);
    double* out = found.mutable_data_ptr<double>();
    torch::stable::parallel_for(
        0, clients, 1, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t i = begin; i < end; ++i) {
                out[i] = kernels().squared_distance(data[i], data[clients], size);
            }
        });
    let_go(xs);
    return found;
}

Tensor squared_norms_int8(Tensors& qs, Tensors& scales) {
    const std::int64_t rows = expect_scaled(qs, scales);
    const auto data = pointers<signed char>(qs);
    const auto scale = pointers<float>(scales);
    const std::int64_t clients = std::int64_t(qs.size()), size = qs[0].numel();
    Tensor found = torch::stable::new_empty(scales[0], {clients}, ScalarType::Double);
    double* out = found.mutable_data_ptr<double>();
    torch::stable::parallel_for(
        0, clients, 1, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t i = begin; i < end; ++i) {
                out[i] = kernels().squared_norm_int8(data[i], scale[i], rows,
                                                     rows ? size / rows : 0);
            }
        });
    let_go(qs, scales);
    return found;
}

}  // namespace fedclip
