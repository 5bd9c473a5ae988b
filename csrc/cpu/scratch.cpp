#include "cpu/scratch.h"

#include <torch/csrc/stable/ops.h>

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

// Blocks that no call uses now: one a thread, up to a limit of all.  Never a wait for
// the lock: a process that forks may leave it taken in the child.
class Shelf {
  public:
    Scratch take(std::size_t bytes) {
        if (const std::unique_lock lock(mutex_, std::try_to_lock); lock) {
            for (auto block = kept_.begin(); block != kept_.end(); ++block) {
                if (block->bytes < bytes) continue;
                const Block found = *block;
                kept_.erase(block);
                return {found.start, {found.bytes}};
            }
            for (const Block& block : kept_) std::free(block.start);
            kept_.clear();  // too small, all of them
        }
        return {allocate(bytes), {bytes}};
    }
    void give(float* start, std::size_t bytes) {
        const std::unique_lock lock(mutex_, std::try_to_lock);
        if (lock && has_room(bytes)) {
            kept_.push_back({start, bytes});
        } else {
            std::free(start);
        }
    }

  private:
    struct Block {
        float* start;
        std::size_t bytes;
    };
    bool has_room(std::size_t bytes) const {
#if defined(__SANITIZE_ADDRESS__)
        return false;  // it finds what goes beyond a block's end
#endif
        for (const Block& block : kept_) bytes += block.bytes;
        const auto threads = std::size_t(torch::stable::get_num_threads());
        return kept_.size() < threads && bytes <= kMost;
    }
    static constexpr std::size_t kMost = 256 << 20;
    std::mutex mutex_;
    std::vector<Block> kept_;
};

Shelf& shelf() {
    static Shelf& shelf = *new Shelf;  // for ever: threads may outlive what is static
    return shelf;
}

}  // namespace

Scratch take_scratch(std::size_t bytes) { return shelf().take(bytes); }

void GiveBack::operator()(float* start) const { shelf().give(start, bytes); }

}  // namespace fedclip::cpu
