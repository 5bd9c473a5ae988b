// Products of two layers' operands: sums over the D features, for a tile of a batch's
// rows and of a block's own features.
#pragma once

#include "device.cuh"
#include "plan.h"

namespace fedclip::gpu {

__device__ inline void put(float* at, float4 v) { *reinterpret_cast<float4*>(at) = v; }
__device__ inline float4 get(const float* at) {
    return *reinterpret_cast<const float4*>(at);
}
__device__ inline float2 get2(const float* at) {
    return *reinterpret_cast<const float2*>(at);
}

struct Nothing {
    __device__ void operator()() const {}
};

// In what follows `Fast` stands for what most rounds have in common; it spares them the
// tests for the rest: D is a multiple of kDepth, a block has one tile of features, and
// both layers' weights of these are in shared memory.  They run on tensor cores, see
// tensor.cuh.

// Rows of a matrix in global memory; outside it, zeros.
template <bool Fast>
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
        if (!row || (!Fast && column >= columns)) return v;
        const float* p = row + column;
        if (Fast || vectors) return get(p);
        v.x = p[0];
        if (column + 1 < columns) v.y = p[1];
        if (column + 2 < columns) v.z = p[2];
        if (column + 3 < columns) v.w = p[3];
        return v;
    }
    // The same on their way to shared memory, of a row or, if not `inside`, of none.
    __device__ void copy(float* to, const float* row, bool inside, int column) const {
        const int count = !inside ? 0 : Fast ? 4 : columns - column;
        if (Fast || vectors) {
            start_copy<16>(to, Fast || count > 0 ? row + column : data, count <= 0);
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                start_copy<4>(to + i, count > i ? row + column + i : data, count <= i);
            }
        }
    }
    // The same of row r.
    __device__ void copy_row(float* to, int r, int column) const {
        copy(to, row(r < rows ? r : 0), r < rows, column);
    }
};

template <bool Bf16>
__device__ inline float4 operand(float4 v) {
    if (!Bf16) return v;
    return make_float4(round_bf16(v.x), round_bf16(v.y), round_bf16(v.z),
                       round_bf16(v.w));
}

// Where a term's features are, in a chunk of a transposed matrix: terms that are 16
// apart in different banks.
__device__ inline int line_of(int term) { return term ^ (term / 16 % 2); }

// The weights of a block's features: feature f's row has D terms.
template <bool Fast, bool Transposed>
struct Weights {
    const float* slab;  // (features, pitch) in shared memory, or null and
    Rows<Fast> rows;    // a matrix whose rows or, if transposed, columns they are
    int pitch, features;

    __device__ bool shared() const { return !Transposed && (Fast || slab); }

    // Starts copying a chunk.
    __device__ void copy(float* to, int feature, int term) const {
        static_assert(kWeightChunk >= kDepth * kFeatures);
        static_assert(kTrainThreads * 4 == kDepth * kFeatures);
        const int t = thread();
        if (Transposed) {
            const int k = t / (kFeatures / 4), f = t % (kFeatures / 4) * 4;
            rows.copy_row(to + line_of(k) * kFeatures + f, term + k, feature + f);
        } else {
            const int f = t / (kDepth / 4), k = t % (kDepth / 4) * 4;
            rows.copy_row(to + f * kPitch + k, feature + f, term + k);
        }
    }
};

// This thread's part of a tile of rows.
template <bool Fast>
struct Tile {
    static constexpr int kLines = kTrainThreads / (kDepth / 4);  // rows at once
    static constexpr int kOwn = kRows / kLines;
    const Rows<Fast>& from;
    const float* rows[kOwn];
    bool inside[kOwn];

    __device__ Tile(const Rows<Fast>& from, int row) : from(from) {
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
            const int r = row + thread() / (kDepth / 4) + i * kLines;
            inside[i] = r < from.rows;
            rows[i] = from.row(inside[i] ? r : 0);  // 0: there is one
        }
    }
    __device__ static float* own(float* buffer, int i) {
        const int line = thread() / (kDepth / 4) + i * kLines;
        return buffer + line * kPitch + thread() % (kDepth / 4) * 4;
    }
    // Starts copying a chunk.
    __device__ void copy(float* buffer, int column) const {
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
            from.copy(own(buffer, i), rows[i], inside[i],
                      column + thread() % (kDepth / 4) * 4);
        }
    }
    // Rounds what this thread copied.
    template <bool Bf16>
    __device__ static void round(float* buffer) {
        if constexpr (Bf16) {
#pragma unroll
            for (int i = 0; i < kOwn; ++i) {
                put(own(buffer, i), operand<Bf16>(get(own(buffer, i))));
            }
        }
    }
};

// Shared memory for what the products read: chunks of a tile of rows, side by side, and
// two chunks of weights; the latter also for sums.
template <bool Fast>
struct Stage {
    float *chunks, *scratch;
    int buffers;

    __device__ float* chunk(int c) const {
        return chunks + (Fast ? c % kBuffers : c % buffers) * kChunk;
    }
    __device__ float* weights(int c) const { return scratch + c % 2 * kWeightChunk; }

    // Starts copying the first chunks of weights; they belong to the next group.
    template <bool Transposed>
    __device__ void begin_weights(const Weights<Fast, Transposed>& w, int feature,
                                  int dim) const {
        if (Fast || w.shared()) return;
        w.copy(weights(0), feature, 0);
        if (kDepth < dim) w.copy(weights(1), feature, kDepth);
    }
    // Starts copying the first chunks of a tile, from column `left` on: kBuffers
    // groups.
    __device__ void begin(const Rows<Fast>& in, int row, int left = 0) const {
        const Tile<Fast> tile(in, row);
#pragma unroll
        for (int c = 0; c < kBuffers; ++c) {
            const int column = left + c * kDepth;
            if ((Fast || c < buffers) && column < in.columns)
                tile.copy(chunk(c), column);
            commit_copies();
        }
    }
};

// Four terms of a chunk: of rows r0, r0 + 4, .. and of features f0, f0 + 4, .., or of
// 4 f0 and the next three where the weights are transposed.
template <bool Bf16, bool Transposed>
__device__ inline void add_terms(const float* inputs, const float* weights, int pitch,
                                 int last, int r0, int f0, int k, float (&sums)[4][4]) {
    float4 a[4];
    float b[4][4];  // by feature and term, or by term and feature
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = get(inputs + (r0 + 4 * i) * kPitch + k);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const int f = min(f0 + 4 * j, last);
        const float* at = Transposed ? weights + line_of(k + j) * kFeatures + 4 * f0
                                     : weights + f * pitch + k;
        const float4 v = operand<Bf16>(get(at));
        b[j][0] = v.x, b[j][1] = v.y, b[j][2] = v.z, b[j][3] = v.w;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float terms[4] = {a[i].x, a[i].y, a[i].z, a[i].w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
            for (int t = 0; t < 4; ++t) {
                sums[i][j] = fmaf(terms[t], Transposed ? b[t][j] : b[j][t], sums[i][j]);
            }
        }
    }
}

// Calls finish(r, f, sum over k < D of in[row + r][k] * w[feature + f][k]) for every
// r < kRows, f < kFeatures, also those outside the matrices.  Calls after() first, once
// nobody reads the chunks of `in` any more.  `begun`: copying has begun, of transposed
// weights before that of `in`.
//
// A warp sums its own terms of each chunk for half of the rows, half of its lanes 16
// terms further on; a lane has 4 rows and 4 features.  The lanes that read the same
// operands are neighbours, so that a read of 16 bytes a lane takes 2 cycles, not 4. The
// order of a sum is fixed.
template <bool Bf16, bool Transposed, class After, class Finish>
__device__ inline void product(const Stage<false>& stage, const Rows<false>& in,
                               int row, const Weights<false, Transposed>& w,
                               int feature, bool begun, const After& after,
                               const Finish& finish) {
    const int dim = in.columns, chunks = (dim + kDepth - 1) / kDepth;
    const int lane = thread() % 32, warp = thread() / 32;
    constexpr int parts = kDepth / 16;  // of a chunk's terms, 16 each
    static_assert(kTrainWarps == 2 * parts && kRows == 32 && kFeatures == 16);
    const int part = warp % parts, half = warp / parts;
    const int r0 = half * 16 + (lane / 2 % 2 + lane / 8 % 2 * 2);
    const int f0 = lane % 2 + lane / 4 % 2 * 2;
    const int begin = part / 2 * 32 + part % 2 * 8 + lane / 16 * 16;
    if (!begun) {
        __syncthreads();  // nobody reads what was there before
        stage.begin_weights(w, feature, dim);
        stage.begin(in, row);
    }
    const bool streams = chunks > stage.buffers;
    const bool shared = w.shared();
    const bool ahead = shared && (!streams || stage.buffers == kBuffers);
    const int pitch = shared ? w.pitch : kPitch;
    const int last = shared ? w.features - 1 - feature : kFeatures - 1;
    float sums[4][4] = {};
    for (int c = 0; c < chunks; ++c) {
        if (c > 0 && stage.buffers == 1) {
            __syncthreads();  // nobody reads the chunk before any more
            Tile<false>(in, row).copy(stage.chunk(c), c * kDepth);
            commit_copies();
        }
        if (c == 0 && (shared || Transposed)) {
            wait_for_copies<kBuffers - 1>();  // weights came before
        } else if (ahead) {
            wait_for_copies<kBuffers - 2>();
        } else {
            wait_for_copies<0>();
        }
        const float* inputs = stage.chunk(c);
        Tile<false>::round<Bf16>(stage.chunk(c));
        __syncthreads();
        if (c > 0) {  // nobody reads the chunk before any more
            const int next = c - 1 + stage.buffers;
            if (streams && stage.buffers > 1 && next < chunks) {
                Tile<false>(in, row).copy(stage.chunk(next), next * kDepth);
            }
            if (!shared && c + 1 < chunks) {
                w.copy(stage.weights(c + 1), feature, (c + 1) * kDepth);
            }
            commit_copies();
        }
        const int term = c * kDepth;
        const float* weights =
            shared ? w.slab + feature * pitch + term : stage.weights(c);
#pragma unroll
        for (int k = begin; k < begin + 8; k += 4) {
            if (term + k >= dim) break;
            add_terms<Bf16, Transposed>(inputs, weights, pitch, last, r0, f0, k, sums);
        }
    }
    __syncthreads();
    after();
    constexpr int tile = kRows * kFeatures;  // of each part
    static_assert(parts * tile <= kScratch);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            sums[i][j] += __shfl_xor_sync(kWholeWarp, sums[i][j], 16);
        }
    }
    const bool upper = lane >= 16;
#pragma unroll
    for (int i = 0; i < 2; ++i) {  // a row of each half of the lanes
        float v[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) v[j] = upper ? sums[i + 2][j] : sums[i][j];
        const int r = r0 + 4 * (upper ? i + 2 : i);
        put(stage.scratch + part * tile + r * kFeatures + 4 * f0,
            make_float4(v[0], v[1], v[2], v[3]));
    }
    __syncthreads();
    for (int at = thread(); at < tile; at += kTrainThreads) {
        float sum = 0;
#pragma unroll
        for (int p = 0; p < parts; ++p) sum += stage.scratch[p * tile + at];
        const int f = at % kFeatures;  // the lanes' order
        finish(at / kFeatures, Transposed ? f : f / 4 + f % 4 * 4, sum);
    }
}

}  // namespace fedclip::gpu
