// The operators `squared_distances` and `squared_norms_int8`.
#include "distance.cuh"
#include "launch.h"
#include "ops.h"

namespace fedclip {

using namespace gpu;

namespace {

// The sums over all elements of each client; (clients,) float64.
template <class Squares>
Tensor run_squares(const Launch& launch, const Squares& squares, const Tensor& like,
                   std::int64_t clients, std::int64_t size) {
    const std::int64_t parts = std::max<std::int64_t>(1, (size + kPart - 1) / kPart);
    const Tensor found =
        torch::stable::new_empty(like, {clients, parts}, ScalarType::Double);
    if (clients) {
        launch.run(sum_squares<Squares>, unsigned(clients * parts),
                   kWarps * sizeof(double), squares, size, parts,
                   found.mutable_data_ptr<double>());
    }
    const std::int64_t of_parts = 1;
    return torch::stable::sum(found,
                              torch::headeronly::IntHeaderOnlyArrayRef(&of_parts, 1));
}

}  // namespace

Tensor squared_distances(Tensors& xs, const Tensor& origin) {
    const Launch launch("squared_distances", origin);
    launch.refuse_capture();  // the table's memory on the host is gone at a replay
    xs.push_back(origin);     // of the same type and shape
    expect_like_first("xs", xs, ScalarType::Float);
    const auto data = pointers<float>(xs);
    Tables tables;
    const std::size_t of_xs = tables.add(data);
    tables.send(launch, origin);
    const Distance squares{tables.at<const float*>(of_xs), data.back(),
                           aligned(data, sizeof(float4))};
    const Tensor found = run_squares(launch, squares, origin,
                                     std::int64_t(xs.size()) - 1, origin.numel());
    let_go(xs);
    return found;
}

Tensor squared_norms_int8(Tensors& qs, Tensors& scales) {
    check(!qs.empty(), "qs: expected at least one tensor, got none");
    const Launch launch("squared_norms_int8", qs[0]);
    launch.refuse_capture();
    const std::int64_t rows = expect_scaled(qs, scales), size = qs[0].numel();
    const std::int64_t columns = rows ? size / rows : 1;
    const auto data = pointers<signed char>(qs);
    const auto factors = pointers<float>(scales);
    Tables tables;
    const std::size_t of_qs = tables.add(data), of_scales = tables.add(factors);
    tables.send(launch, qs[0]);
    const Norm squares{tables.at<const signed char*>(of_qs),
                       tables.at<const float*>(of_scales), columns,
                       columns % 4 == 0 && aligned(data, sizeof(char4))};
    const Tensor found =
        run_squares(launch, squares, scales[0], std::int64_t(qs.size()), size);
    let_go(qs, scales);
    return found;
}

}  // namespace fedclip
