// Registers the CPU kernels with the dispatcher.  An operator without a line here runs
// its pure-PyTorch reference.
#include "ops.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_IMPL(fedclip, CPU, m) {
    m.impl("weighted_mean", TORCH_BOX(&fedclip::weighted_mean));
}
