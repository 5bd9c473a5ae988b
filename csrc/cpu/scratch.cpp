#include "cpu/scratch.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fedclip::cpu {
namespace {

// Large blocks in huge pages where the system has them: else a step looks up thousands
// of pages, which holds up what is fetched from them.
float* allocate(std::size_t bytes) {
    constexpr std::size_t huge = 2 << 20;
    const std::size_t page = bytes < 4 * huge ? 64 : huge;
    void* start = std::aligned_alloc(page, (bytes + page - 1) / page * page);
    if (!start) throw std::bad_alloc();
#if defined(__linux__)
    if (page == huge) madvise(start, bytes, MADV_HUGEPAGE);  // may fail: it is a hint
#endif
    return static_cast<float*>(start);
}

// Blocks that no call uses now: a thread's for training, up to a limit of all.
class Shelf {
  public:
    Scratch::Block take(std::size_t bytes) {
        const std::unique_lock lock(mutex_, std::try_to_lock);
        const auto fits = [bytes](const auto& block) { return block.bytes >= bytes; };
        if (lock) {
            const auto found = std::find_if(kept_.begin(), kept_.end(), fits);
            if (found != kept_.end()) {
                const Scratch::Block block = *found;
                kept_.erase(found);
                return block;
            }
            for (const auto& block : kept_) std::free(block.start);
            kept_.clear();  // too small, all of them
        }
        return {allocate(bytes), bytes};
    }
    void give(Scratch::Block block) {
        const std::unique_lock lock(mutex_, std::try_to_lock);
        const auto most = std::size_t(torch::stable::get_num_threads());
        if (kKeeps && lock && kept_.size() < most && bytes() + block.bytes <= kMost) {
            kept_.push_back(block);
        } else {
            std::free(block.start);
        }
    }

  private:
#if defined(__SANITIZE_ADDRESS__)
    static constexpr bool kKeeps = false;  // it finds what goes beyond a block's end
#else
    static constexpr bool kKeeps = true;
#endif
    static constexpr std::size_t kMost = 256 << 20;
    std::size_t bytes() const {
        std::size_t sum = 0;
        for (const auto& block : kept_) sum += block.bytes;
        return sum;
    }
    std::mutex mutex_;
    std::vector<Scratch::Block> kept_;
};

Shelf& shelf() {
    static Shelf& shelf = *new Shelf;  // for ever: threads may outlive what is static
    return shelf;
}

}  // namespace

Scratch::Scratch(std::size_t bytes) : block_(shelf().take(bytes)) {}

Scratch::~Scratch() {
    if (block_.start) shelf().give(block_);
}

}  // namespace fedclip::cpu
