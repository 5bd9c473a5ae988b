// In place of PyTorch's: products on the CPU.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#define aoti_torch_cuda_mm_out aoti_torch_cpu_mm_out
