// Memory for the buffers of a call.
#pragma once

#include <cstddef>
#include <memory>

namespace fedclip::cpu {

struct GiveBack {
    std::size_t bytes;
    void operator()(float* start) const;
};

// A block for as long as it lives.  Some are kept for the next calls: the first touch
// of a client's buffers takes longer than a step of its training.
using Scratch = std::unique_ptr<float, GiveBack>;

Scratch take_scratch(std::size_t bytes);

}  // namespace fedclip::cpu
