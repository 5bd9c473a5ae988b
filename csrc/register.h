// Registers the kernels of one device with the dispatcher.  They compute in float32; a
// call whose first argument is of another type, or on a GPU without code in this build,
// goes to the PyTorch reference, which fedclip_plugin/ops/ registers under the same
// name in the library `fedclip_reference`.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <utility>

#include "ops.h"
#include "tensors.h"
#include "torch_calls.h"
#ifdef FEDCLIP_GPU
#include "cuda/support.h"
#endif

namespace fedclip {

using Boxed = void (*)(StableIValue* stack, std::uint64_t inputs,
                       std::uint64_t outputs);

// What decides who computes a call: its first argument.
struct Lead {
    std::int32_t dtype, device;

    explicit Lead(AtenTensorHandle tensor) {
        STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
        STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor, &device));
    }
    bool served(bool float32) const {
        if (float32 && dtype != aoti_torch_dtype_float32()) return false;
#ifdef FEDCLIP_GPU
        return gpu::refusal(device).empty();
#else
        return true;
#endif
    }
};

// Looks at the first argument, a tensor or a list of them, and leaves it on the stack.
inline bool is_served(StableIValue first, bool is_list, bool float32) {
    using torch::stable::detail::to;
    if (!is_list) return Lead(to<AtenTensorHandle>(first)).served(float32);
    const auto list = to<StableListHandle>(first);
    std::size_t size = 0;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_list_size(list, &size));
    if (size == 0) return true;  // the kernel answers, or says that it is empty
    StableIValue item = 0;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_list_get_item(list, 0, &item));
    // borrowed: the list owns it
    return Lead(to<AtenTensorHandle>(item)).served(float32);
}

inline void kernel_or_reference(StableIValue* stack, std::uint64_t inputs,
                                std::uint64_t outputs, Boxed kernel,
                                const char* reference, bool is_list, bool float32) {
    if (is_served(stack[0], is_list, float32)) return kernel(stack, inputs, outputs);
    STABLE_TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher(reference, "", stack, TORCH_ABI_VERSION));
}

// An argument on the stack, as the type of the member that it initialises.
struct Argument {
    StableIValue value;
    template <class T>
    operator T() const {
        return torch::stable::detail::to<T>(value);
    }
};

template <std::size_t... I>
TrainingArguments take_arguments(const StableIValue* stack, std::index_sequence<I...>) {
    return {Argument{stack[I]}...};
}

inline void boxed_local_round(StableIValue* stack, std::uint64_t inputs,
                              std::uint64_t) {
    constexpr auto all = std::make_index_sequence<16>();
    check(inputs == all.size(), "local_round: expected ", all.size(),
          " arguments, got ", inputs);
    stack[0] = torch::stable::detail::from(local_round(take_arguments(stack, all)));
}

// A round of one client: what has an entry a client becomes a list.
inline void boxed_local_epoch(StableIValue* stack, std::uint64_t inputs,
                              std::uint64_t outputs) {
    using torch::stable::detail::from, torch::stable::detail::to;
    for (const int i : {0, 1, 3}) stack[i] = from(Tensors{to<Tensor>(stack[i])});
    stack[8] = from(std::vector<std::int64_t>{to<std::int64_t>(stack[8])});
    boxed_local_round(stack, inputs, outputs);
}

// No moments and no counts of steps: they are the operator's own.
inline void boxed_fresh_round(StableIValue* stack, std::uint64_t inputs,
                              std::uint64_t) {
    check(inputs == 14, "fresh_round: expected 14 arguments, got ", inputs);
    const auto at = [stack](int i) { return Argument{stack[i]}; };
    const Tensor params = at(6);
    const Tensor losses = fresh_round({at(0),
                                       at(1),
                                       at(2),
                                       at(3),
                                       at(4),
                                       at(5),
                                       {},
                                       {},
                                       {},
                                       at(7),
                                       at(8),
                                       at(9),
                                       at(10),
                                       at(11),
                                       at(12),
                                       at(13)},
                                      params);
    stack[0] = torch::stable::detail::from(losses);
}

}  // namespace fedclip

// `is_list`: the first argument is one; `float32`: of other types the reference
// computes.
#define FEDCLIP_IMPL_BOXED(m, op, boxed, is_list, float32)                             \
    m.impl(#op, [](StableIValue* stack, std::uint64_t inputs, std::uint64_t outputs) { \
        fedclip::kernel_or_reference(stack, inputs, outputs, boxed,                    \
                                     "fedclip_reference::" #op, is_list, float32);     \
    })
#define FEDCLIP_IMPL(m, op, is_list, float32) \
    FEDCLIP_IMPL_BOXED(m, op, TORCH_BOX(&fedclip::op), is_list, float32)

// The operators of both devices: those of matrix products, and those of the clients'
// tensors.
#define FEDCLIP_IMPL_PRODUCTS(m)                                                 \
    FEDCLIP_IMPL(m, adapter, false, true);                                       \
    FEDCLIP_IMPL(m, adapter_backward, false, true);                              \
    FEDCLIP_IMPL_BOXED(m, local_epoch, fedclip::boxed_local_epoch, false, true); \
    FEDCLIP_IMPL_BOXED(m, local_round, fedclip::boxed_local_round, true, true)
#define FEDCLIP_IMPL_LISTS(m)                         \
    FEDCLIP_IMPL(m, weighted_mean, true, true);       \
    FEDCLIP_IMPL(m, weighted_mean_int8, true, false); \
    FEDCLIP_IMPL(m, squared_distances, true, true);   \
    FEDCLIP_IMPL(m, squared_norms_int8, true, false)
