// The operators `adapter` and `adapter_backward`.
#include <algorithm>

#include "cpu/workspace.h"
#include "ops.h"
#include "tensors.h"
#include "torch_calls.h"

namespace fedclip {

using namespace cpu;

namespace {

constexpr std::int64_t kForwardRows = 128;   // activations of a block stay in L2
constexpr std::int64_t kBackwardRows = 256;  // bounds the workspace

void forward(const Batch& batch, bool parallel) {
    const Kernels& k = kernels();
    const std::int64_t rows = row_units(batch.rows),
                       features = feature_units(batch.dim);
    run(k.fp32.load, batch, rows, parallel);
    run(k.fp32.hidden, batch, features, parallel);
    run(k.fp32.scores, batch, features, parallel);
    run(k.gate, batch, rows, parallel);
}

Parameter output(const Tensor& tensor) {
    return {tensor.mutable_data_ptr<float>(), nullptr, nullptr, nullptr};
}

// A parameter that the phases of this file only read.
Parameter input(const Tensor& tensor) {
    return {nullptr, nullptr, nullptr, floats(tensor)};
}

// float32 (rows, dim), uninitialised.  (torch::stable::new_empty goes by the
// dispatcher, which takes longer than the allocation.)
Tensor empty(std::int64_t rows, std::int64_t dim) {
    const std::int64_t sizes[] = {rows, dim}, strides[] = {dim, 1};
    AtenTensorHandle handle = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_empty_strided(2, sizes, strides, aoti_torch_dtype_float32(),
                                 aoti_torch_device_type_cpu(), 0, &handle));
    return Tensor(handle);
}

}  // namespace

std::tuple<Tensor, Tensor> adapter(Tensor x, Tensor w1, Tensor b1, Tensor w2,
                                   Tensor b2) {
    expect("adapter: x", x, ScalarType::Float, {-1, -1});
    const std::int64_t rows = x.size(0), dim = x.size(1);
    expect_square("adapter: w1", w1, dim);
    expect("adapter: b1", b1, ScalarType::Float, {dim});
    expect_square("adapter: w2", w2, dim);
    expect("adapter: b2", b2, ScalarType::Float, {dim});
    x = row_major(x), w1 = row_major(w1), b1 = row_major(b1);
    w2 = row_major(w2), b2 = row_major(b2);
    Tensor z = empty(rows, dim), h = empty(rows, dim);
    float *z_data = z.mutable_data_ptr<float>(), *h_data = h.mutable_data_ptr<float>();
    const float* x_data = floats(x);
    const Layer layers[2] = {{input(w1), input(b1)}, {input(w2), input(b2)}};

    const auto block = [&](const Workspace& workspace, std::int64_t first,
                           std::int64_t count, bool parallel) {
        Batch batch = workspace.batch(count);
        const std::int64_t width = 2 * kernels().lanes;
        batch.x = x_data + first * dim;
        batch.x_row = dim;
        std::copy(layers, layers + 2, batch.layer);
        batch.h_panels = {h_data + first * dim, dim, width};
        batch.z_panels = {z_data + first * dim, dim, width};
        forward(batch, parallel);
    };
    const std::int64_t blocks = (rows + kForwardRows - 1) / kForwardRows;
    const std::int64_t threads = torch::stable::get_num_threads();
    if (blocks < threads) {  // too few: share the features of one block instead
        if (rows) block(Workspace(Use::forward, rows, dim, 0), 0, rows, true);
        return {z, h};
    }
    std::vector<Workspace> workspaces;
    for (std::int64_t t = 0; t < threads; ++t) {
        workspaces.emplace_back(Use::forward, std::min(rows, kForwardRows), dim, 0);
    }
    share_out(blocks, threads, [&](std::int64_t worker, std::int64_t i) {
        const std::int64_t first = i * kForwardRows;
        block(workspaces[worker], first, std::min(kForwardRows, rows - first), false);
    });
    return {z, h};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> adapter_backward(Tensor dz,
                                                            std::optional<Tensor> dh,
                                                            Tensor x, Tensor h,
                                                            Tensor z, Tensor w2) {
    expect("adapter_backward: x", x, ScalarType::Float, {-1, -1});
    const std::int64_t rows = x.size(0), dim = x.size(1);
    expect("adapter_backward: dz", dz, ScalarType::Float, {rows, dim});
    if (dh) expect("adapter_backward: dh", *dh, ScalarType::Float, {rows, dim});
    expect("adapter_backward: h", h, ScalarType::Float, {rows, dim});
    expect("adapter_backward: z", z, ScalarType::Float, {rows, dim});
    expect_square("adapter_backward: w2", w2, dim);
    dz = row_major(dz), x = row_major(x), h = row_major(h), z = row_major(z);
    w2 = row_major(w2);
    if (dh) dh = row_major(*dh);
    Tensor dw1 = torch::stable::new_empty(x, {dim, dim});
    Tensor db1 = torch::stable::new_empty(x, {dim});
    Tensor dw2 = torch::stable::new_empty(x, {dim, dim});
    Tensor db2 = torch::stable::new_empty(x, {dim});

    const Kernels& k = kernels();
    const Workspace workspace(Use::backward, std::min(rows, kBackwardRows), dim, 0);
    const std::int64_t features = feature_units(dim);
    Batch batch = workspace.batch(0);
    batch.layer[1].weight = input(w2);
    run(k.fp32.pack_weights, batch, features, true);
    std::int64_t first = 0;
    do {  // once for no rows: the gradients are zeros then
        batch = workspace.batch(std::min(kBackwardRows, rows - first));
        batch.x = floats(x) + first * dim;
        batch.h = floats(h) + first * dim;
        batch.z = floats(z) + first * dim;
        batch.dz = floats(dz) + first * dim;
        batch.dh = dh ? floats(*dh) + first * dim : nullptr;
        batch.layer[0] = {output(dw1), output(db1)};
        batch.layer[1] = {output(dw2), output(db2)};
        batch.accumulate = first > 0;
        const std::int64_t row_groups = row_units(batch.rows);
        run(k.load_backward, batch, row_groups, true);
        run(k.gate_backward, batch, row_groups, true);
        run(k.fp32.grad_hidden, batch, features, true);
        run(k.grad_weights, batch, 2 * features, true);
        first += kBackwardRows;
    } while (first < rows);
    return {dw1, db1, dw2, db2};
}

}  // namespace fedclip
