// The operators `adapter` and `adapter_backward`: products by cuBLAS, the rest fused.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>

#include "gate.cuh"
#include "launch.h"
#include "ops.h"
#include "torch_calls.h"

namespace fedclip {

using namespace gpu;

namespace {

// a b.  Not through the dispatcher: autocast would turn it into half precision.
Tensor product(const Tensor& a, const Tensor& b) {
    Tensor out = torch::stable::new_empty(a, {a.size(0), b.size(1)});
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(out.get(), a.get(), b.get()));
    return out;
}

Tensor transposed(const Tensor& matrix) {
    return torch::stable::transpose(matrix, 0, 1);
}

Tensor column_sums(const Tensor& matrix) {
    const std::int64_t rows = 0;
    return torch::stable::sum(matrix,
                              torch::headeronly::IntHeaderOnlyArrayRef(&rows, 1));
}

// Runs a kernel with a warp for each row.
template <class Kernel, class... Arguments>
void run_rows(const Launch& launch, Kernel kernel, const Tensor& matrix,
              Arguments... arguments) {
    const std::int64_t rows = matrix.size(0), dim = matrix.size(1);
    if (rows == 0 || dim == 0) return;
    launch.run(kernel, blocks_for(rows, kWarps), 0, arguments..., rows, dim);
}

}  // namespace

std::tuple<Tensor, Tensor> adapter(Tensor x, Tensor w1, Tensor b1, Tensor w2,
                                   Tensor b2) {
    const Launch launch("adapter", x);
    expect("adapter: x", x, ScalarType::Float, {-1, -1});
    const std::int64_t dim = x.size(1);
    expect_square("adapter: w1", w1, dim);
    expect("adapter: b1", b1, ScalarType::Float, {dim});
    expect_square("adapter: w2", w2, dim);
    expect("adapter: b2", b2, ScalarType::Float, {dim});
    x = row_major(x), b1 = row_major(b1), b2 = row_major(b2);
    const Tensor h = product(x, transposed(w1));
    run_rows(launch, tanh_rows, h, h.mutable_data_ptr<float>(), floats(b1));
    const Tensor z = product(h, transposed(w2));
    run_rows(launch, gate_scores, z, z.mutable_data_ptr<float>(), floats(b2),
             floats(x));
    return {z, h};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> adapter_backward(Tensor dz,
                                                            std::optional<Tensor> dh,
                                                            Tensor x, Tensor h,
                                                            Tensor z, Tensor w2) {
    const Launch launch("adapter_backward", x);
    expect("adapter_backward: x", x, ScalarType::Float, {-1, -1});
    const std::int64_t rows = x.size(0), dim = x.size(1);
    expect("adapter_backward: dz", dz, ScalarType::Float, {rows, dim});
    if (dh) expect("adapter_backward: dh", *dh, ScalarType::Float, {rows, dim});
    expect("adapter_backward: h", h, ScalarType::Float, {rows, dim});
    expect("adapter_backward: z", z, ScalarType::Float, {rows, dim});
    expect_square("adapter_backward: w2", w2, dim);
    dz = row_major(dz), h = row_major(h), z = row_major(z);
    if (dh) dh = row_major(*dh);
    const Tensor du = torch::stable::new_empty(z, {rows, dim});
    run_rows(launch, grad_scores, du, floats(dz), floats(z),
             du.mutable_data_ptr<float>());
    const Tensor da = product(du, w2);
    run_rows(launch, grad_hidden, da, da.mutable_data_ptr<float>(),
             dh ? floats(*dh) : nullptr, floats(h));
    return {product(transposed(da), x), column_sums(da), product(transposed(du), h),
            column_sums(du)};
}

}  // namespace fedclip
