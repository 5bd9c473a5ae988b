// The in-batch contrastive loss from the logits L = s z t' (B, P) of the P classes in
// the batch, each with a count n; the mathematics is that of docs/kernels.md.
#pragma once

#include "device.cuh"
#include "plan.h"

namespace fedclip::gpu {

struct Loss {
    int rows, classes;
    const float* logits;          // (B, P)
    const int* column;            // (B,) class of a row
    const int* count;             // (P,) rows of a class
    float *row_lse, *column_lse;  // (B,), (P,): every block has its own

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

// log sum_c n_c e^L of each row, a warp each.
__device__ inline void find_row_lse(const Loss& loss) {
    const int lane = threadIdx.x % 32;
    for (int row = threadIdx.x / 32; row < loss.rows; row += kTrainWarps) {
        float top = kLowest, sum = 0;
        for (int c = lane; c < loss.classes; c += 32) {
            top = fmaxf(top, loss.logit(row, c));
        }
        top = warp_max(top);
        for (int c = lane; c < loss.classes; c += 32) {
            sum += float(loss.count[c]) * expf(loss.logit(row, c) - top);
        }
        sum = warp_sum(sum);
        if (lane == 0) loss.row_lse[row] = top + logf(sum);
    }
}

// log sum_b e^L of each class: some threads a class, as many classes at once as fit.
__device__ inline void find_column_lse(const Loss& loss, float* stage) {
    int across = 1;
    while (across < loss.classes && across < kTrainThreads) across *= 2;
    const int parts = kTrainThreads / across;
    const int part = threadIdx.x / across;
    float *tops = stage, *sums = stage + kTrainThreads;
    for (int left = 0; left < loss.classes; left += across) {
        const int c = left + threadIdx.x % across;
        float top = kLowest, sum = 0;
        if (c < loss.classes) {
            for (int b = part; b < loss.rows; b += parts) {
                top = fmaxf(top, loss.logit(b, c));
            }
            for (int b = part; b < loss.rows; b += parts) {
                sum += expf(loss.logit(b, c) - top);
            }
        }
        __syncthreads();
        tops[threadIdx.x] = top;
        sums[threadIdx.x] = sum;
        __syncthreads();
        if (part || c >= loss.classes) continue;
        for (int p = 1; p < parts; ++p) top = fmaxf(top, tops[p * across + c - left]);
        sum = 0;
        for (int p = 0; p < parts; ++p) {
            const int at = p * across + c - left;
            sum += sums[at] * expf(tops[at] - top);
        }
        loss.column_lse[c] = top + logf(sum);
    }
}

// The loss itself, by the first warp.
__device__ inline void write_loss(const Loss& loss, float* out) {
    if (threadIdx.x >= 32) return;
    double sum = 0;
    for (int b = threadIdx.x; b < loss.rows; b += 32) {
        const int c = loss.column[b];
        const double own = loss.logit(b, c);
        sum += (double(loss.row_lse[b]) - own) + (double(loss.column_lse[c]) - own);
    }
    sum = warp_sum(sum);
    if (threadIdx.x == 0) *out = float(sum / (2.0 * loss.rows));
}

// Calls finish(b, f, d loss / d (z_b text_f), <L, dL>_b) for every row b and own
// feature f; text_of(c, f) is a class's text.  `stage` has kStage floats.
template <class Text, class Finish>
__device__ inline void loss_gradient(const Loss& loss, int features, float* stage,
                                     const Text& text_of, const Finish& finish) {
    constexpr int classes = 32, pitch = classes + 1;
    constexpr int outputs = kRows * kFeatures / kTrainThreads;
    float *grads = stage, *products = stage + kRows * pitch;
    for (int row = 0; row < loss.rows; row += kRows) {
        for (int feature = 0; feature < features; feature += kFeatures) {
            float sums[outputs] = {}, dots[outputs] = {};
            for (int left = 0; left < loss.classes; left += classes) {
                const int width = min(classes, loss.classes - left);
                __syncthreads();
                for (int at = threadIdx.x; at < kRows * classes; at += kTrainThreads) {
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
                    const int at = threadIdx.x + i * kTrainThreads;
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
                const int at = threadIdx.x + i * kTrainThreads;
                const int r = at / kFeatures, f = feature + at % kFeatures;
                if (row + r >= loss.rows || f >= features) continue;
                finish(row + r, f, sums[i], dots[i]);
            }
        }
    }
}

}  // namespace fedclip::gpu
