// Checks of tensors: they guard every access to memory, also where torch.ops.fedclip is
// called directly.  A message names the argument, what is wanted and what came.
//
// The CPU and the CUDA module have these functions each for their own device.
#pragma once

#include <Python.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

namespace fedclip {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

// An argument, and an entry of one that is a list; it becomes text in messages alone.
struct Entry {
    const char* name;
    std::size_t at;
};

inline void append(std::string& text, const char* part) { text += part; }
inline void append(std::string& text, const std::string& part) { text += part; }
template <class Number>
void append(std::string& text, Number part) {
    text += std::to_string(part);
}
inline void append(std::string& text, Entry part) {
    text.append(part.name).append("[").append(std::to_string(part.at)).append("]");
}

// Raises RuntimeError with the parts as its message.  (STD_TORCH_CHECK would put a
// function, a file and a line before them.)  No streams here, nor elsewhere: in a
// module that has libstdc++ within it, as some toolchains make, they crash beside
// torch's.
template <class... Parts>
void check(bool holds, const Parts&... parts) {
    if (holds) return;
    std::string message;
    (append(message, parts), ...);
    throw std::runtime_error(message);
}

// Where an operator runs: on the CPU, or on the current device, which its guard has
// made that of its first tensor.  To ask for that one takes longer than all else of a
// tensor: for a list it is asked once.
#ifdef USE_CUDA
class Here {
  public:
    bool has(const Tensor& tensor) const {
        return tensor.is_cuda() && tensor.get_device_index() == device_;
    }
    std::string name() const { return "cuda:" + std::to_string(device_); }

  private:
    const std::int32_t device_ = torch::stable::accelerator::getCurrentDeviceIndex();
};
#else
struct Here {
    bool has(const Tensor& tensor) const { return tensor.is_cpu(); }
    std::string name() const { return "the CPU"; }
};
#endif

inline std::string shape_text(const std::int64_t* sizes, std::size_t dims) {
    std::string text = "(";
    for (std::size_t d = 0; d < dims; ++d) {
        text += sizes[d] < 0 ? "any" : std::to_string(sizes[d]);
        text += d + 1 < dims ? ", " : dims == 1 ? "," : "";
    }
    return text + ")";
}

inline const char* dtype_text(ScalarType dtype) {
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

inline std::string describe(const Tensor& tensor, const Here& here = Here()) {
    const auto sizes = tensor.sizes();
    std::string text = dtype_text(tensor.scalar_type());
    text.append(" ").append(shape_text(sizes.data(), sizes.size()));
    return here.has(tensor) ? text : text + " on another device";
}

// Here, and of this type and shape; -1 is any size.
inline bool fits(const Tensor& tensor, ScalarType dtype,
                 std::initializer_list<std::int64_t> shape, const Here& here = Here()) {
    bool fits = here.has(tensor) && tensor.scalar_type() == dtype &&
                tensor.dim() == static_cast<std::int64_t>(shape.size());
    std::int64_t d = 0;
    for (const std::int64_t size : shape) {
        fits = fits && (size < 0 || tensor.size(d) == size);
        ++d;
    }
    return fits;
}

// Raises unless it fits.  `name`: text, or an Entry.
template <class Name>
void expect(const Name& name, const Tensor& tensor, ScalarType dtype,
            std::initializer_list<std::int64_t> shape, const Here& here = Here()) {
    if (fits(tensor, dtype, shape, here)) return;
    check(false, name, ": expected ", dtype_text(dtype), " ",
          shape_text(shape.begin(), shape.size()), " on ", here.name(), ", got ",
          describe(tensor, here));
}

template <class Name>
void expect_square(const Name& name, const Tensor& weight, std::int64_t dim,
                   const Here& here = Here()) {
    expect(name, weight, ScalarType::Float, {dim, dim}, here);
}

// The same data in row-major order: the tensor itself, or a copy.  CUDA kernels load 16
// bytes of a matrix at once, from addresses that are multiples of that.
inline Tensor row_major(const Tensor& tensor) {
    if (!tensor.is_contiguous()) return torch::stable::contiguous(tensor);
#ifdef FEDCLIP_GPU
    const bool matrix = tensor.dim() == 2 && tensor.scalar_type() == ScalarType::Float;
    const auto address = reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr());
    if (matrix && address % 16) return torch::stable::clone(tensor);
#endif
    return tensor;
}

inline const float* floats(const Tensor& contiguous) {
    return contiguous.const_data_ptr<float>();
}

// A tensor to be changed in place: row-major while the guard lives, through a copy that
// is written back if need be.
class InPlace {
  public:
    explicit InPlace(const Tensor& tensor)
        : tensor_(tensor), work_(row_major(tensor)) {}
    InPlace(InPlace&&) = default;
    float* data() const { return work_.mutable_data_ptr<float>(); }
    void write_back() {
        if (work_.get() != tensor_.get()) torch::stable::copy_(tensor_, work_);
    }

  private:
    Tensor tensor_, work_;
};

// The data of tensors, which become row-major.
template <typename T>
std::vector<const T*> pointers(Tensors& tensors) {
    std::vector<const T*> data;
    data.reserve(tensors.size());
    for (Tensor& tensor : tensors) {
        if (!tensor.is_contiguous()) tensor = torch::stable::contiguous(tensor);
        data.push_back(tensor.const_data_ptr<T>());
    }
    return data;
}

// Empties lists of tensors.  PyTorch takes the interpreter's lock whenever the last C++
// owner of a tensor goes: it is cheaper to hold it already.
template <class... Lists>
void let_go(Lists&... lists) {
    const bool python = Py_IsInitialized();
    const auto state = python ? PyGILState_Ensure() : PyGILState_UNLOCKED;
    (lists.clear(), ...);
    if (python) PyGILState_Release(state);
}

inline void expect_like_first(const char* name, const Tensors& tensors,
                              ScalarType dtype) {
    check(!tensors.empty(), name, ": expected at least one tensor, got none");
    const Here here;
    const auto wanted = tensors[0].sizes();
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        const auto sizes = tensors[i].sizes();
        if (here.has(tensors[i]) && tensors[i].scalar_type() == dtype &&
            sizes.size() == wanted.size() &&
            std::equal(sizes.begin(), sizes.end(), wanted.begin())) {
            continue;
        }
        check(false, Entry{name, i}, ": expected the type and shape of ", name, "[0], ",
              describe(tensors[0]), ", got ", describe(tensors[i]));
    }
}

// Int8 tensors of one shape, each with a scale for every row, or one in all.  Returns
// the number of scales.
inline std::int64_t expect_scaled(const Tensors& qs, const Tensors& scales) {
    expect_like_first("qs", qs, ScalarType::Char);
    check(scales.size() == qs.size(), "scales: expected ", qs.size(), " entries, got ",
          scales.size());
    std::int64_t rows = qs[0].dim() ? qs[0].size(0) : 1;
    if (fits(scales[0], ScalarType::Float, {1})) rows = 1;
    const Here here;
    for (std::size_t i = 0; i < scales.size(); ++i) {
        expect(Entry{"scales", i}, scales[i], ScalarType::Float, {rows}, here);
    }
    return rows;
}

template <typename T>
std::vector<double> to_doubles(const Tensor& tensor) {
    const T* data = tensor.const_data_ptr<T>();
    return std::vector<double>(data, data + tensor.numel());
}

// weights / sum(weights): one a client, float32 or float64, on any device.
inline std::vector<double> shares_of(const Tensor& weights, std::size_t clients) {
    const bool doubles = weights.scalar_type() == ScalarType::Double;
    const std::int64_t count = static_cast<std::int64_t>(clients);
    if ((!doubles && weights.scalar_type() != ScalarType::Float) ||
        weights.dim() != 1 || weights.size(0) != count) {
        check(false, "weights: expected float32 or float64 ", shape_text(&count, 1),
              ", got ", describe(weights));
    }
    Tensor values = weights;
    if (!values.is_cpu()) {
        values = torch::stable::to(
            values, torch::stable::Device(torch::headeronly::DeviceType::CPU));
    }
    values = row_major(values);
    auto shares = doubles ? to_doubles<double>(values) : to_doubles<float>(values);
    double total = 0;
    for (const double share : shares) total += share;
    for (double& share : shares) share /= total;
    return shares;
}

}  // namespace fedclip
