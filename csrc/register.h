// Registers the kernels of one device with the dispatcher.  They compute in float32; a
// call whose first argument is of another type goes to the PyTorch reference, which
// schemas.py registers under the same name in the library `fedclip_reference`.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>

#include "ops.h"
#include "torch_calls.h"

namespace fedclip {

using Boxed = void (*)(StableIValue* stack, std::uint64_t inputs,
                       std::uint64_t outputs);

inline bool is_float32(AtenTensorHandle tensor) {
    std::int32_t dtype = 0;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
    return dtype == aoti_torch_dtype_float32();
}

// Looks at the first argument, a tensor or a list of them, and leaves it on the stack.
inline bool first_is_float32(StableIValue first, bool is_list) {
    using torch::stable::detail::to;
    if (!is_list) return is_float32(to<AtenTensorHandle>(first));
    const auto list = to<StableListHandle>(first);
    std::size_t size = 0;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_list_size(list, &size));
    if (size == 0) return true;  // the kernel answers, or says that it is empty
    StableIValue item = 0;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_list_get_item(list, 0, &item));
    return is_float32(to<AtenTensorHandle>(item));  // borrowed: the list owns it
}

inline void float32_or_reference(StableIValue* stack, std::uint64_t inputs,
                                 std::uint64_t outputs, Boxed kernel,
                                 const char* reference, bool is_list) {
    if (first_is_float32(stack[0], is_list)) return kernel(stack, inputs, outputs);
    STABLE_TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher(reference, "", stack, TORCH_ABI_VERSION));
}

}  // namespace fedclip

#define FEDCLIP_IMPL(m, op, is_list)                                                   \
    m.impl(#op, [](StableIValue* stack, std::uint64_t inputs, std::uint64_t outputs) { \
        fedclip::float32_or_reference(stack, inputs, outputs, TORCH_BOX(&fedclip::op), \
                                      "fedclip_reference::" #op, is_list);             \
    })

// All operators, for a dispatch key.
#define FEDCLIP_REGISTER(key)                                                  \
    STABLE_TORCH_LIBRARY_IMPL(fedclip, key, m) {                               \
        FEDCLIP_IMPL(m, adapter, false);                                       \
        FEDCLIP_IMPL(m, adapter_backward, false);                              \
        FEDCLIP_IMPL(m, local_epoch, false);                                   \
        FEDCLIP_IMPL(m, local_round, true);                                    \
        FEDCLIP_IMPL(m, weighted_mean, true);                                  \
        m.impl("weighted_mean_int8", TORCH_BOX(&fedclip::weighted_mean_int8)); \
    }
