// The operators of a device, in float32; register.h registers them.  Schemas,
// references, fakes and autograd are in fedclip_plugin/ops/.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace fedclip {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

// The arguments of `local_round` in the order of its schema: an entry a client in x, y,
// perm and step, four in params and in Adam's moments.
struct TrainingArguments {
    Tensors x, y;
    Tensor text;
    Tensors perm;
    std::int64_t batch_size;
    Tensors params, exp_avg, exp_avg_sq;
    std::vector<std::int64_t> step;  // Adam steps already taken
    double lr, beta1, beta2, eps, weight_decay, logit_scale;
    std::string precision;

    std::int64_t classes() const { return text.size(0); }
    std::int64_t dim() const { return text.size(1); }
    bool bf16() const { return precision == "bf16"; }
};

std::tuple<Tensor, Tensor> adapter(Tensor x, Tensor w1, Tensor b1, Tensor w2,
                                   Tensor b2);

std::tuple<Tensor, Tensor, Tensor, Tensor> adapter_backward(Tensor dz,
                                                            std::optional<Tensor> dh,
                                                            Tensor x, Tensor h,
                                                            Tensor z, Tensor w2);

// The losses of all clients, one client's after another's.
Tensor local_round(TrainingArguments arguments);

// Training from one start, `arguments.params` (four in all), with moments of zeros that
// are thrown away; `perm` (epochs, samples).  On the CPU alone.  Writes the parameters,
// a client a row (K, 2 D^2 + 2 D), and returns the losses.
Tensor fresh_round(TrainingArguments arguments, Tensor params);

Tensor weighted_mean(Tensors& xs, const Tensor& weights);

Tensor weighted_mean_int8(Tensors& qs, Tensors& scales, const Tensor& weights);

// How far each client's tensor is from one origin, as it is or as an int8 difference;
// (K,) float64.
Tensor squared_distances(Tensors& xs, const Tensor& origin);

Tensor squared_norms_int8(Tensors& qs, Tensors& scales);

}  // namespace fedclip
