// Memory for the buffers of a call.
#pragma once

#include <cstddef>
#include <utility>

namespace fedclip::cpu {

// A block for as long as it lives.  Some are kept for the next calls: the first touch
// of a client's buffers takes longer than a step of its training.
class Scratch {
  public:
    Scratch() = default;
    explicit Scratch(std::size_t bytes);
    Scratch(Scratch&& other) noexcept : block_(std::exchange(other.block_, {})) {}
    Scratch& operator=(Scratch&& other) noexcept {
        std::swap(block_, other.block_);
        return *this;
    }
    ~Scratch();
    float* data() const { return block_.start; }

    struct Block {
        float* start;
        std::size_t bytes;
    };

  private:
    Block block_{};
};

}  // namespace fedclip::cpu
