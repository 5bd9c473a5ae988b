// Memory for the phases of kernels.h, and the loops that run their units.
#pragma once

#include <atomic>

#include "cpu/kernels.h"
#include "cpu/scratch.h"

#include <torch/csrc/stable/ops.h>

namespace fedclip::cpu {

enum class Use { forward, backward, training, bf16_training };

// The buffers of one batch of at most `rows` rows and `classes` classes.
class Workspace {
  public:
    Workspace(Use use, std::int64_t rows, std::int64_t dim, std::int64_t classes,
              bool moments = false);
    // A batch of `rows` rows in these buffers; everything else is zero.
    Batch batch(std::int64_t rows) const;

    float* text;   // (classes, dim)
    float* count;  // (classes,)
    // Where Adam's moments are not a client's own: Adam's two of each parameter.
    void take_moments(Layer (&layer)[2]) const;

    bool packed = false;  // the weights' other forms are those of the round's start

  private:
    float* take(std::int64_t size);
    void take_pairs(std::int64_t all_rows, std::int64_t features);

    Scratch memory_;
    std::int64_t used_ = 0;
    Batch buffers_{};
    Layer moments_[2]{};
};

// Units of work by `lanes` rows and by 2 * lanes features.
std::int64_t row_units(std::int64_t rows);
std::int64_t feature_units(std::int64_t dim);

// Runs a phase's units, over the threads of PyTorch's pool if `parallel`.
void run(Phase phase, const Batch& batch, std::int64_t units, bool parallel);

// Runs task(worker, i) for i < tasks on `workers` threads; a worker that is done takes
// the next task, so that a long one does not hold up the others.
template <class F>
void share_out(std::int64_t tasks, std::int64_t workers, const F& task) {
    std::atomic<std::int64_t> next{0};
    torch::stable::parallel_for(
        0, workers, 1, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t worker = begin; worker < end; ++worker) {
                for (std::int64_t i = next++; i < tasks; i = next++) task(worker, i);
            }
        });
}

}  // namespace fedclip::cpu
