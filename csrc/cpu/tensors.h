// Checks of tensors: they guard every access to memory, also where torch.ops.fedclip is
// called directly.  A message names the argument, what is wanted and what came.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace fedclip {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Raises RuntimeError with the parts as its message.  (STD_TORCH_CHECK would put a
// function, a file and a line before them.)
template <class... Parts>
void check(bool holds, const Parts&... parts) {
    if (holds) return;
    std::ostringstream message;
    (message << ... << parts);
    throw std::runtime_error(message.str());
}

std::string describe(const Tensor& tensor);

// Raises unless `tensor` is on the CPU and of this type and shape; -1 is any size.
void expect(const std::string& name, const Tensor& tensor, ScalarType dtype,
            std::initializer_list<std::int64_t> shape);

// The same data in row-major order: the tensor itself, or a copy.
Tensor row_major(const Tensor& tensor);

const float* floats(const Tensor& contiguous);

// A tensor to be changed in place: row-major while the guard lives, through a copy that
// is written back if need be.
class InPlace {
  public:
    explicit InPlace(const Tensor& tensor)
        : tensor_(tensor), work_(row_major(tensor)) {}
    InPlace(InPlace&&) = default;
    float* data() const { return work_.mutable_data_ptr<float>(); }
    void write_back();

  private:
    Tensor tensor_, work_;
};

// int64 values, all in 0..below-1.
Tensor indices(const std::string& name, const Tensor& tensor, std::int64_t size,
               std::int64_t below);

// weights / sum(weights): one a client, float32 or float64.
std::vector<double> shares_of(const Tensor& weights, std::size_t clients);

}  // namespace fedclip
