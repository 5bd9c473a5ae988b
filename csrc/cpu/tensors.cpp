#include "cpu/tensors.h"

namespace fedclip {
namespace {

std::string shape_text(const std::int64_t* sizes, std::size_t dims) {
    std::string text = "(";
    for (std::size_t d = 0; d < dims; ++d) {
        text += sizes[d] < 0 ? "any" : std::to_string(sizes[d]);
        text += d + 1 < dims ? ", " : dims == 1 ? "," : "";
    }
    return text + ")";
}

const char* dtype_text(ScalarType dtype) {
    switch (dtype) {
        case ScalarType::Float:
            return "float32";
        case ScalarType::Double:
            return "float64";
        case ScalarType::Long:
            return "int64";
        case ScalarType::Char:
            return "int8";
        default:
            return torch::headeronly::toString(dtype);
    }
}

template <typename T>
std::vector<double> to_doubles(const Tensor& tensor) {
    const T* data = tensor.const_data_ptr<T>();
    return std::vector<double>(data, data + tensor.numel());
}

}  // namespace

std::string describe(const Tensor& tensor) {
    const auto sizes = tensor.sizes();
    std::string text = dtype_text(tensor.scalar_type());
    text += " " + shape_text(sizes.data(), sizes.size());
    return tensor.is_cpu() ? text : text + " on another device";
}

void expect(const std::string& name, const Tensor& tensor, ScalarType dtype,
            std::initializer_list<std::int64_t> shape) {
    bool fits = tensor.is_cpu() && tensor.scalar_type() == dtype &&
                tensor.dim() == static_cast<std::int64_t>(shape.size());
    std::int64_t d = 0;
    for (const std::int64_t size : shape) {
        fits = fits && (size < 0 || tensor.size(d) == size);
        ++d;
    }
    check(fits, name, ": expected ", dtype_text(dtype), " ",
          shape_text(shape.begin(), shape.size()), " on the CPU, got ",
          describe(tensor));
}

Tensor row_major(const Tensor& tensor) {
    return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

const float* floats(const Tensor& contiguous) {
    return contiguous.const_data_ptr<float>();
}

void InPlace::write_back() {
    if (work_.get() != tensor_.get()) torch::stable::copy_(tensor_, work_);
}

Tensor indices(const std::string& name, const Tensor& tensor, std::int64_t size,
               std::int64_t below) {
    expect(name, tensor, ScalarType::Long, {size});
    const Tensor values = row_major(tensor);
    const std::int64_t* data = values.const_data_ptr<std::int64_t>();
    for (std::int64_t i = 0; i < values.numel(); ++i) {
        if (data[i] >= 0 && data[i] < below) continue;
        check(false, name, ": expected values in 0..", below - 1, ", got ", data[i],
              " at ", i);
    }
    return values;
}

std::vector<double> shares_of(const Tensor& weights, std::size_t clients) {
    const ScalarType dtype = weights.scalar_type();
    const bool doubles = dtype == ScalarType::Double;
    expect("weights", weights, doubles ? dtype : ScalarType::Float,
           {static_cast<std::int64_t>(clients)});
    const Tensor values = row_major(weights);
    auto shares = doubles ? to_doubles<double>(values) : to_doubles<float>(values);
    double total = 0;
    for (const double share : shares) total += share;
    for (double& share : shares) share /= total;
    return shares;
}

}  // namespace fedclip
