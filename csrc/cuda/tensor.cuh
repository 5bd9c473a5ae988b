// The products of a fast round on tensor cores (sm_80 and later), for a tile of rows
// and a block's tile of features.
//
// A factor is split into two TF32 numbers, 11 bits each; what is left out of the
// product of two is within 2^-21 of it.  A tensor core sums 8 terms, products with a
// lower part first, and truncates; all further sums are rounded, in float32.  Numbers
// that are rounded to bfloat16 are TF32 numbers as they are.
#pragma once

#include "product.cuh"

namespace fedclip::gpu {

// A thread's part of a factor, for multiply.
template <int Size>
struct Factor {
    float upper[Size], lower[Size];

    template <bool Bf16>
    __device__ void set(int i, float value) {
        upper[i] = Bf16 ? round_bf16(value) : round_tf32(value);
        lower[i] = Bf16 ? 0.f : value - upper[i];
    }
};

// A thread's 4 sums of a tile (16, 8).  Of the factors (16, 8) and (8, 8) a thread has,
// with g = lane / 4 and t = lane % 4, rows g and g + 8 at terms t and, behind both,
// t + 4; column g at terms t and t + 4; and sums of rows g, g, g + 8, g + 8 at columns
// 2t, 2t + 1, 2t, 2t + 1.
struct Sums {
    float of[4] = {};

    template <bool Bf16>
    __device__ void add(const Factor<4>& a, const Factor<2>& b) {
        float sums[4] = {};
        if (!Bf16) {
            multiply(sums, a.lower, b.upper);
            multiply(sums, a.upper, b.lower);
        }
        multiply(sums, a.upper, b.upper);
#pragma unroll
        for (int i = 0; i < 4; ++i) of[i] += sums[i];
    }
};

// The weights that a thread multiplies a chunk by: of features g and g + 8, terms t and
// t + 4 of the warp's 8.
template <bool Transposed>
struct Terms {
    const float* at;
    int pitch;

    __device__ explicit Terms(const Weights<true, Transposed>& w) {
        const int lane = thread() % 32, g = lane / 4;
        const int k = thread() / 32 * 8 + lane % 4;
        pitch = Transposed ? int(w.rows.pitch) : w.pitch;
        at = Transposed ? w.rows.data + k * pitch + g : w.slab + g * pitch + k;
    }
    __device__ void load(float (&terms)[4], int chunk) const {
        const float* from = at + chunk * kDepth * (Transposed ? pitch : 1);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            terms[i] = Transposed ? from[i % 2 * 4 * pitch + i / 2 * 8]
                                  : from[i / 2 * 8 * pitch + i % 2 * 4];
        }
    }
};

// Adds up the warps' sums of a tile, and calls finish(r, f, sum) for all of it.
template <class Finish>
__device__ inline void add_warps(float* scratch, const Sums (&sums)[2][2],
                                 const Finish& finish) {
    constexpr int tile = kRows * kFeatures, half = kTrainWarps / 2;
    static_assert(half * tile <= kScratch && tile == kTrainThreads);
    const int lane = thread() % 32, warp = thread() / 32;
    float* own = scratch + warp % half * tile + lane * 4;
    float4 v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const Sums& s = sums[i / 2][i % 2];
        v[i] = make_float4(s.of[0], s.of[1], s.of[2], s.of[3]);
        if (warp >= half) put(own + i * 128, v[i]);
    }
    __syncthreads();
    if (warp < half) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float4 w = get(own + i * 128);
            put(own + i * 128,
                make_float4(v[i].x + w.x, v[i].y + w.y, v[i].z + w.z, v[i].w + w.w));
        }
    }
    __syncthreads();
    const int at = thread(), of = at / 4 % 32;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < half; ++w) sum += scratch[w * tile + at];
    finish(at / 256 * 16 + at / 2 % 2 * 8 + of / 4,
           at / 128 % 2 * 8 + of % 4 * 2 + at % 2, sum);
}

// As `product`, for a tile of rows that is on its way, or `ready`: there, but for the
// threads of a block to wait for one another.  A warp has 8 terms of each chunk.
template <bool Bf16, bool Transposed, class After, class Finish>
__device__ inline void tensor_product(const Stage<true>& stage, const Rows<true>& in,
                                      int row, bool ready,
                                      const Weights<true, Transposed>& w,
                                      const After& after, const Finish& finish) {
    const int chunks = in.columns / kDepth, lane = thread() % 32;
    const Terms<Transposed> terms(w);
    const float* tile = stage.chunks + lane / 4 * kPitch + thread() / 32 * 8 + lane % 4;
    Sums sums[2][2];
    for (int first = 0; first < chunks; first += kBuffers) {
        float weights[kBuffers][4];
#pragma unroll
        for (int i = 0; i < kBuffers; ++i) {  // from far: on their way with the rows
            if (Transposed && first + i < chunks) terms.load(weights[i], first + i);
        }
#pragma unroll
        for (int i = 0; i < kBuffers; ++i) {
            const int c = first + i;
            if (c >= chunks) break;
            if (ready) {
                if (c == 0) wait_for_copies<0>();
            } else if (c == 0) {
                wait_for_copies<kBuffers - 1>();
            } else {
                wait_for_copies<kBuffers - 2>();
            }
            if (c == 0 || !ready) __syncthreads();
            if (c > 0 && !ready) {  // nobody reads the chunk before any more
                const int next = c - 1 + kBuffers;
                if (next < chunks) {
                    Tile<true>(in, row).copy(stage.chunk(next), next * kDepth);
                }
                commit_copies();
            }
            if (!Transposed) terms.load(weights[i], c);
            Factor<4> a[2];
            Factor<2> b[2];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float* at = tile + i * kChunk + j % 2 * 8 * kPitch + j / 2 * 4;
                a[0].template set<Bf16>(j, at[0]);
                a[1].template set<Bf16>(j, at[16 * kPitch]);
                b[j / 2].template set<Bf16>(j % 2, weights[i][j]);
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                sums[j / 2][j % 2].template add<Bf16>(a[j / 2], b[j % 2]);
            }
        }
    }
    __syncthreads();
    after();
    add_warps(stage.scratch, sums, finish);
}

}  // namespace fedclip::gpu
