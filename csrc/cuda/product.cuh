// Products of two layers' operands: sums over the D features, for a tile of a batch's
// rows and of a block's own features.
#pragma once

#include "device.cuh"
#include "plan.h"

namespace fedclip::gpu {

// Rows of a matrix in global memory; outside it, zeros.
struct Rows {
    const float* data;
    std::int64_t pitch;
    const int* index;  // of row r; null: r itself
    int rows, columns;
    bool vectors;  // whole ones: 16-byte aligned, columns a multiple of 4

    // Row r, or null outside.
    __device__ const float* row(int r) const {
        return r < rows ? data + (index ? index[r] : r) * pitch : nullptr;
    }
    // Four terms of a row from a column on.
    __device__ float4 load(const float* row, int column) const {
        float4 v = make_float4(0, 0, 0, 0);
        if (!row || column >= columns) return v;
        const float* p = row + column;
        if (vectors) return *reinterpret_cast<const float4*>(p);
        v.x = p[0];
        if (column + 1 < columns) v.y = p[1];
        if (column + 2 < columns) v.z = p[2];
        if (column + 3 < columns) v.w = p[3];
        return v;
    }
    __device__ float4 load(int r, int column) const { return load(row(r), column); }
};

template <bool Bf16>
__device__ inline float4 operand(float4 v) {
    if (!Bf16) return v;
    return make_float4(round_bf16(v.x), round_bf16(v.y), round_bf16(v.z),
                       round_bf16(v.w));
}

__device__ inline void put(float* at, float4 v) { *reinterpret_cast<float4*>(at) = v; }
__device__ inline float4 get(const float* at) {
    return *reinterpret_cast<const float4*>(at);
}

// The weights of a block's features: feature f's row has D terms.
struct Weights {
    const float* shared;  // (features, pitch) in shared memory, or null and
    Rows rows;            // a matrix whose rows, or whose columns, are the features
    bool transposed;
    int pitch, features;
};

// A chunk of kDepth terms on its way from global to shared memory: in registers while
// the chunk before is multiplied.
struct Chunk {
    static constexpr int lines = kTrainThreads / (kDepth / 4);  // at once
    const float* rows[kRows / lines];  // this thread's, of all chunks
    float4 inputs[kRows / lines];
    float4 weights[kFeatures / lines];

    __device__ Chunk(const Rows& in, int row) {
#pragma unroll
        for (int i = 0; i < kRows / lines; ++i) {
            rows[i] = in.row(row + threadIdx.x / (kDepth / 4) + i * lines);
        }
    }

    __device__ void fetch(const Rows& in, const Weights& w, int feature, int term) {
        const int line = threadIdx.x / (kDepth / 4),
                  column = threadIdx.x % (kDepth / 4) * 4;
#pragma unroll
        for (int i = 0; i < kRows / lines; ++i) {
            inputs[i] = in.load(rows[i], term + column);
        }
        if (w.shared) return;
#pragma unroll
        for (int i = 0; i < kFeatures / lines; ++i) {
            if (w.transposed) {
                const int at = threadIdx.x + i * kTrainThreads;  // 4 features of a term
                weights[i] = w.rows.load(term + at / 4, feature + at % 4 * 4);
            } else {
                weights[i] = w.rows.load(feature + line + i * lines, term + column);
            }
        }
    }

    template <bool Bf16>
    __device__ void store(float* in, float* out, const Weights& w) const {
        const int line = threadIdx.x / (kDepth / 4),
                  column = threadIdx.x % (kDepth / 4) * 4;
#pragma unroll
        for (int i = 0; i < kRows / lines; ++i) {
            put(in + (line + i * lines) * kPitch + column, operand<Bf16>(inputs[i]));
        }
        if (w.shared) return;
#pragma unroll
        for (int i = 0; i < kFeatures / lines; ++i) {
            if (w.transposed) {
                const int at = threadIdx.x + i * kTrainThreads;
                float* to = out + at % 4 * 4 * kPitch + at / 4;
                to[0] = weights[i].x;
                to[kPitch] = weights[i].y;
                to[2 * kPitch] = weights[i].z;
                to[3 * kPitch] = weights[i].w;
            } else {
                put(out + (line + i * lines) * kPitch + column, weights[i]);
            }
        }
    }
};

// Calls finish(r, f, sum over k < dim of in[row + r][k] * w[feature + f][k]) for every
// r < kRows, f < kFeatures, also those outside the matrices; `stage` has kStage floats.
//
// A warp sums its own terms of each chunk for half of the rows, half of its lanes 16
// terms further on; a lane has 4 rows and 4 features.  The lanes that read the same
// operands are neighbours, so that a read of 16 bytes a lane takes 2 cycles, not 4. The
// order of a sum is fixed.
template <bool Bf16, class Finish>
__device__ inline void product(float* stage, const Rows& in, int row, const Weights& w,
                               int feature, int dim, const Finish& finish) {
    float *inputs = stage, *staged = stage + kRows * kPitch;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    constexpr int parts = kDepth / 16;  // of a chunk's terms, 16 each
    static_assert(kTrainWarps == 2 * parts && kRows == 32 && kFeatures == 16);
    const int part = warp % parts, half = warp / parts;
    const int r0 = half * 16 + (lane / 2 % 2 + lane / 8 % 2 * 2);
    const int f0 = lane % 2 + lane / 4 % 2 * 2;
    const int begin = part / 2 * 32 + part % 2 * 8 + lane / 16 * 16;
    float sums[4][4] = {};
    Chunk chunk(in, row);
    chunk.fetch(in, w, feature, 0);
    for (int term = 0; term < dim; term += kDepth) {
        __syncthreads();  // nobody reads what was staged before
        chunk.store<Bf16>(inputs, staged, w);
        __syncthreads();
        if (term + kDepth < dim) chunk.fetch(in, w, feature, term + kDepth);
        const float* weights = w.shared ? w.shared + term : staged;
        const int pitch = w.shared ? w.pitch : kPitch;
        const int base = w.shared ? feature : 0;
        const int last = w.shared ? w.features - 1 : kFeatures - 1;
#pragma unroll
        for (int k = begin; k < begin + 8; k += 4) {
            if (term + k >= dim) break;
            float4 a[4], b[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) a[i] = get(inputs + (r0 + 4 * i) * kPitch + k);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int f = base + f0 + 4 * j;
                b[j] = operand<Bf16>(get(weights + (f < last ? f : last) * pitch + k));
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    float& sum = sums[i][j];
                    sum = fmaf(a[i].x, b[j].x, sum);
                    sum = fmaf(a[i].y, b[j].y, sum);
                    sum = fmaf(a[i].z, b[j].z, sum);
                    sum = fmaf(a[i].w, b[j].w, sum);
                }
            }
        }
    }
    __syncthreads();
    constexpr int tile = kRows * kFeatures;  // of each part, over what was staged
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float sum = sums[i][j] + __shfl_xor_sync(kWholeWarp, sums[i][j], 16);
            const int at = (r0 + 4 * i) * kFeatures + f0 + 4 * j;
            if (lane < 16) stage[part * tile + at] = sum;
        }
    }
    __syncthreads();
    for (int at = threadIdx.x; at < tile; at += kTrainThreads) {
        float sum = 0;
#pragma unroll
        for (int p = 0; p < parts; ++p) sum += stage[p * tile + at];
        finish(at / kFeatures, at % kFeatures, sum);
    }
}

}  // namespace fedclip::gpu
