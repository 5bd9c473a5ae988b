// Weight gradients dW = d' q of a block's own features, with Adam at the end of a tile.
#pragma once

#include "product.cuh"

namespace fedclip::gpu {

// torch.optim.Adam with its bias corrections folded in; the averages as on the CPU.
struct Adam {
    AdamStep now;
    float one_beta1, one_beta2, weight_decay;

    __device__ void step(float& value, float& exp_avg, float& exp_avg_sq,
                         float grad) const {
        grad = fmaf(weight_decay, value, grad);
        exp_avg_sq = fmaf(one_beta2, fmaf(grad, grad, -exp_avg_sq), exp_avg_sq);
        exp_avg = fmaf(one_beta1, grad - exp_avg, exp_avg);
        // no branches, as the exact root and quotient have: elements side by side
        const float ratio = quotient(exp_avg, root(exp_avg_sq) + now.eps);
        value = fmaf(-now.rate, ratio, value);
    }
    __device__ void step(float* value, float* exp_avg, float* exp_avg_sq,
                         float grad) const {
        step(*value, *exp_avg, *exp_avg_sq, grad);
    }
};

// A layer's slabs: (features, pitch) each, in shared or global memory.
struct Layer {
    float *value, *exp_avg, *exp_avg_sq;
};

// Sets what is not among the first `count` to 0.
__device__ inline void keep(float4& v, int count) {
    if (count < 2) v.y = 0;
    if (count < 3) v.z = 0;
    if (count < 4) v.w = 0;
}

// Features feature..feature + 4 * Groups of the weights.  A thread has 4 features and 4
// columns; `copy` gets the new weights, rows of `pitch` floats, unless it is null.
template <bool Bf16, int Groups>
__device__ inline void update_tile(float* stage, const Rows& d, int feature,
                                   int features, const Rows& q, int pitch,
                                   const Layer& layer, const Adam& adam, float* copy) {
    constexpr int across = kTrainThreads / Groups;  // threads
    constexpr int width = 4 * across;               // columns at a time
    constexpr int depth = 4096 / width;             // rows at a time
    constexpr int d_width = 4 * Groups;
    float *qs = stage, *ds = stage + depth * width;
    const int group = threadIdx.x / across, column = threadIdx.x % across * 4;
    const int line = threadIdx.x / (width / 4), part = threadIdx.x % (width / 4) * 4;
    constexpr int lines = kTrainThreads / (width / 4);  // rows at once
    constexpr int d_vectors = depth * d_width / 4;      // of d, by the first threads
    static_assert(d_vectors <= kTrainThreads && depth % lines == 0);
    static_assert(depth * (width + d_width) <= kStage);
    const int d_line = threadIdx.x / (d_width / 4),
              d_part = threadIdx.x % (d_width / 4) * 4;

    for (int left = 0; left < q.columns; left += width) {
        float4 next[depth / lines], next_d = make_float4(0, 0, 0, 0);
        const auto fetch = [&](int row) {
#pragma unroll
            for (int i = 0; i < depth / lines; ++i) {
                next[i] = q.load(row + line + i * lines, left + part);
            }
            if (threadIdx.x < d_vectors)
                next_d = d.load(row + d_line, feature + d_part);
        };
        float sums[4][4] = {};
        fetch(0);
        for (int row = 0; row < q.rows; row += depth) {
            __syncthreads();
#pragma unroll
            for (int i = 0; i < depth / lines; ++i) {
                put(qs + (line + i * lines) * width + part, operand<Bf16>(next[i]));
            }
            if (threadIdx.x < d_vectors) {
                put(ds + d_line * d_width + d_part, operand<Bf16>(next_d));
            }
            __syncthreads();
            if (row + depth < q.rows) fetch(row + depth);
#pragma unroll
            for (int r = 0; r < depth; ++r) {
                const float4 b = get(qs + r * width + column);
                const float4 d4 = get(ds + r * d_width + group * 4);
                const float a[4] = {d4.x, d4.y, d4.z, d4.w};
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    sums[i][0] = fmaf(a[i], b.x, sums[i][0]);
                    sums[i][1] = fmaf(a[i], b.y, sums[i][1]);
                    sums[i][2] = fmaf(a[i], b.z, sums[i][2]);
                    sums[i][3] = fmaf(a[i], b.w, sums[i][3]);
                }
            }
        }
        const int at = left + column, count = q.columns - at;
        if (count <= 0) continue;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int f = feature + group * 4 + i;
            if (f >= features) continue;
            const std::int64_t start = std::int64_t(f) * pitch + at;
            float4 value = get(layer.value + start), m = get(layer.exp_avg + start),
                   v = get(layer.exp_avg_sq + start);
            adam.step(value.x, m.x, v.x, sums[i][0]);
            adam.step(value.y, m.y, v.y, sums[i][1]);
            adam.step(value.z, m.z, v.z, sums[i][2]);
            adam.step(value.w, m.w, v.w, sums[i][3]);
            if (count < 4) {  // pads stay 0: with an eps of 0 they are NaN now
                keep(value, count);
                keep(m, count);
                keep(v, count);
            }
            put(layer.value + start, value);
            put(layer.exp_avg + start, m);
            put(layer.exp_avg_sq + start, v);
            if (copy) put(copy + start, value);
        }
    }
}

// The gradient of 16 biases, sums over rows of d, and Adam on them.
__device__ inline void update_bias(float* stage, const Rows& d, int feature,
                                   int features, int pitch, const Layer& layer,
                                   const Adam& adam) {
    constexpr int parts = kTrainThreads / kFeatures;
    const int f = threadIdx.x % kFeatures, part = threadIdx.x / kFeatures;
    const bool own = feature + f < features;
    float sum = 0;
    if (own) {
        for (int b = part; b < d.rows; b += parts) {
            sum += d.data[b * d.pitch + feature + f];
        }
    }
    __syncthreads();
    stage[part * kFeatures + f] = sum;
    __syncthreads();
    if (part || !own) return;
    for (int p = 1; p < parts; ++p) sum += stage[p * kFeatures + f];
    const std::int64_t at = std::int64_t(feature + f) * pitch + pitch - 1;
    adam.step(layer.value + at, layer.exp_avg + at, layer.exp_avg_sq + at, sum);
}

// One layer: d (B, own features) are the gradients of its outputs, q (B, D) its inputs.
template <bool Bf16>
__device__ inline void update_layer(float* stage, const Rows& d, int features,
                                    const Rows& q, int pitch, const Layer& layer,
                                    const Adam& adam, float* copy) {
    for (int f = 0; f < features; f += kFeatures) {
        if (features - f > 8) {
            update_tile<Bf16, 4>(stage, d, f, features, q, pitch, layer, adam, copy);
        } else {
            update_tile<Bf16, 2>(stage, d, f, features, q, pitch, layer, adam, copy);
        }
        update_bias(stage, d, f, features, pitch, layer, adam);
    }
}

}  // namespace fedclip::gpu
