// The CPU kernels, one file each under cpu/; ops.cpp registers them.  Schemas, checks
// of values, references and autograd are in fedclip_plugin/ops.py.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <vector>

namespace fedclip {

using torch::stable::Tensor;

// sum_i w_i x_i / sum_i w_i, in list order; shape and dtype of xs[0].
Tensor weighted_mean(std::vector<Tensor> xs, Tensor weights);

}  // namespace fedclip
