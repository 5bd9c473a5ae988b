// The in-batch contrastive loss from the logits L = s z t' (B, P) of the P classes in
// the batch, each with a count n; the mathematics is that of docs/kernels.md.
#pragma once

#include "device.cuh"
#include "plan.h"

namespace fedclip::gpu {

struct Loss {
    int rows, classes;
    float* logits;                // (B, P)
    const int* column;            // (B,) class of a row
    const int* count;             // (P,) rows of a class
    const int* label;             // (P,) which one it is
    float *row_lse, *column_lse;  // (B,), (P,): every block has its own
    float *top, *inverse;         // (B,) largest score, 1 / |e|

    __device__ float logit(int row, int c) const {
        return logits[std::int64_t(row) * classes + c];
    }
    // d loss / d logit
    __device__ float grad(int row, int c) const {
        const float value = logit(row, c);
        float sum = expf(value - row_lse[row]) + expf(value - column_lse[c]);
        sum *= float(count[c]);
        if (column[row] == c) sum -= 2;
        return sum / float(2 * rows);
    }
};

// log sum_c n_c e^L of each row, half a warp each.
__device__ inline void find_row_lse(const Loss& loss) {
    const int lane = thread() % 16;
    for (int first = 0; first < loss.rows; first += kTrainThreads / 16) {
        const int own = first + thread() / 16;
        const int row = min(own, loss.rows - 1);  // all lanes take part in the sums
        float top = kLowest, sum = 0;
#pragma unroll 1
        for (int c = lane; c < loss.classes; c += 16) {
            top = fmaxf(top, loss.logit(row, c));
        }
        top = warp_max<16>(top);
#pragma unroll 1
        for (int c = lane; c < loss.classes; c += 16) {
            sum += float(loss.count[c]) * expf(loss.logit(row, c) - top);
        }
        sum = warp_sum<16>(sum);
        if (lane == 0 && own < loss.rows) loss.row_lse[row] = top + logf(sum);
    }
}

// log sum_b e^L of each class, a warp each.
__device__ inline void find_column_lse(const Loss& loss) {
    const int lane = thread() % 32;
    for (int c = thread() / 32; c < loss.classes; c += kTrainWarps) {
        float top = kLowest, sum = 0;
#pragma unroll 1
        for (int b = lane; b < loss.rows; b += 32) top = fmaxf(top, loss.logit(b, c));
        top = warp_max(top);
#pragma unroll 1
        for (int b = lane; b < loss.rows; b += 32) sum += expf(loss.logit(b, c) - top);
        sum = warp_sum(sum);
        if (lane == 0) loss.column_lse[c] = top + logf(sum);
    }
}

// The loss itself, by the first warp.
__device__ inline void write_loss(const Loss& loss, float* out) {
    if (thread() >= 32) return;
    double sum = 0;
#pragma unroll 1
    for (int b = thread(); b < loss.rows; b += 32) {
        const int c = loss.column[b];
        const double own = loss.logit(b, c);
        sum += (double(loss.row_lse[b]) - own) + (double(loss.column_lse[c]) - own);
    }
    sum = warp_sum(sum);
    if (thread() == 0) *out = float(sum / (2.0 * loss.rows));
}

// Calls finish(b, f, d loss / d (z_b text_f), <L, dL>_b) for every row b and own
// feature f; text_of(c, f) is a class's text.  `scratch` has kScratch floats.
template <class Text, class Finish>
__device__ inline void loss_gradient(const Loss& loss, int features, float* scratch,
                                     const Text& text_of, const Finish& finish) {
    constexpr int classes = 32, pitch = classes + 1;
    constexpr int outputs = kRows * kFeatures / kTrainThreads;
    float *grads = scratch, *products = scratch + kRows * pitch;
    static_assert(2 * kRows * pitch <= kScratch);
    for (int row = 0; row < loss.rows; row += kRows) {
        for (int feature = 0; feature < features; feature += kFeatures) {
            float sums[outputs] = {}, dots[outputs] = {};
            for (int left = 0; left < loss.classes; left += classes) {
                const int width = min(classes, loss.classes - left);
                __syncthreads();
                for (int at = thread(); at < kRows * classes; at += kTrainThreads) {
                    const int r = at / classes, c = at % classes;
                    const bool inside = row + r < loss.rows && c < width;
                    const float grad = inside ? loss.grad(row + r, left + c) : 0.f;
                    const float logit = inside ? loss.logit(row + r, left + c) : 0.f;
                    grads[r * pitch + c] = grad;
                    products[r * pitch + c] = grad * logit;
                }
                __syncthreads();
#pragma unroll
                for (int i = 0; i < outputs; ++i) {
                    const int at = thread() + i * kTrainThreads;
                    const int r = at / kFeatures, f = feature + at % kFeatures;
                    if (row + r >= loss.rows || f >= features) continue;
#pragma unroll 8
                    for (int c = 0; c < width; ++c) {
                        sums[i] =
                            fmaf(grads[r * pitch + c], text_of(left + c, f), sums[i]);
                        dots[i] += products[r * pitch + c];
                    }
                }
            }
#pragma unroll
            for (int i = 0; i < outputs; ++i) {
                const int at = thread() + i * kTrainThreads;
                const int r = at / kFeatures, f = feature + at % kFeatures;
                if (row + r >= loss.rows || f >= features) continue;
                finish(row + r, f, sums[i], dots[i]);
            }
        }
    }
}

}  // namespace fedclip::gpu
