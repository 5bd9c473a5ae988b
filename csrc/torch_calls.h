// Calls of LibTorch's C functions, whatever its version calls the check of them.
#pragma once

#include <torch/csrc/stable/library.h>

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // older than its name
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif
