// The operators on the CPU, in float32; ops.cpp registers them.  Schemas, references,
// fakes and autograd are in fedclip_plugin/schemas.py.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

namespace fedclip {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

std::tuple<Tensor, Tensor> adapter(Tensor x, Tensor w1, Tensor b1, Tensor w2,
                                   Tensor b2);

std::tuple<Tensor, Tensor, Tensor, Tensor> adapter_backward(Tensor dz,
                                                            std::optional<Tensor> dh,
                                                            Tensor x, Tensor h,
                                                            Tensor z, Tensor w2);

Tensor local_epoch(Tensor x, Tensor y, Tensor text, Tensor perm,
                   std::int64_t batch_size, Tensors params, Tensors exp_avg,
                   Tensors exp_avg_sq, std::int64_t step, double lr, double beta1,
                   double beta2, double eps, double weight_decay, double logit_scale,
                   bool bf16);

// The losses of all clients, one client's after another's.
Tensor local_round(Tensors x, Tensors y, Tensor text, Tensors perm,
                   std::int64_t batch_size, Tensors params, Tensors exp_avg,
                   Tensors exp_avg_sq, std::vector<std::int64_t> step, double lr,
                   double beta1, double beta2, double eps, double weight_decay,
                   double logit_scale, bool bf16);

Tensor weighted_mean(Tensors& xs, const Tensor& weights);

Tensor weighted_mean_int8(Tensors& qs, Tensors& scales, const Tensor& weights);

}  // namespace fedclip
