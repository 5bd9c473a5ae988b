// Weight gradients dW = d' q of a block's own features, with Adam at the end of a tile.
#pragma once

#include <type_traits>

#include "tensor.cuh"

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
    bool near;  // the moments are in shared memory
};

// The moments of a thread's 4 vectors of 4 columns.
struct Moments {
    float4 m[4], v[4];

    // `at` these places of the slabs; `count` of them.
    __device__ void load(const Layer& layer, const int (&at)[4], int count) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i >= count) continue;
            m[i] = get(layer.exp_avg + at[i]);
            v[i] = get(layer.exp_avg_sq + at[i]);
        }
    }
    __device__ void store(const Layer& layer, const int (&at)[4], int count) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i >= count) continue;
            put(layer.exp_avg + at[i], m[i]);
            put(layer.exp_avg_sq + at[i], v[i]);
        }
    }
};

// Sets what is not among the first `count` to 0.
__device__ inline void keep(float4& v, int count) {
    if (count < 2) v.y = 0;
    if (count < 3) v.z = 0;
    if (count < 4) v.w = 0;
}

// The gradients of a layer's outputs: in global memory and, if there is one tile of
// rows, only or also in `tile`; (kRows, pitch).
template <bool Fast>
struct Gradients {
    Rows<Fast> all;
    float* tile;
    int pitch;

    __device__ bool whole() const { return all.rows <= kRows; }
    // Starts copying the tile from a row on, kFeatures columns.
    __device__ void begin(int row, int feature) const {
        constexpr int across = kFeatures / 4;
        const int r = thread() / across;
        const int f = feature + thread() % across * 4;
        if (r < kRows && f < pitch) all.copy_row(tile + r * pitch + f, row + r, f);
    }
};

// The gradients of the biases, sums over rows of d, and Adam on them: a warp has 16
// features, half of its lanes the odd rows.
template <bool Fast>
__device__ inline void update_bias(const Gradients<Fast>& of, int rows, int features,
                                   int pitch, const Layer& layer, const Adam& adam) {
    const float* d = of.whole() ? of.tile : of.all.data;
    const std::int64_t d_pitch = of.whole() ? of.pitch : of.all.pitch;
    const int lane = thread() % 16, half = thread() / 16 % 2;
    for (int first = thread() / 32 * 16; first < features; first += 16 * kTrainWarps) {
        const int f = first + lane;
        float sum = 0;
        if (f < features) {
#pragma unroll 4
            for (int b = half; b < rows; b += 2) sum += d[b * d_pitch + f];
        }
        sum += __shfl_xor_sync(kWholeWarp, sum, 16);
        if (half || f >= features) continue;
        const int at = f * pitch + pitch - 1;
        adam.step(layer.value + at, layer.exp_avg + at, layer.exp_avg_sq + at, sum);
    }
}

// What a thread adds to its 4 features and 4 columns, of the rows of a tile.
template <bool Bf16>
__device__ inline void add_rows(const float* q, const float* d, int d_pitch, int rows,
                                float (&sums)[4][4]) {
#pragma unroll 8
    for (int r = 0; r < rows; ++r) {
        const float4 b = get(q + r * kPitch);
        const float4 d4 = operand<Bf16>(get(d + r * d_pitch));
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

// Adam on 4 vectors of 4 columns `at` these places of the slabs: on the first `count`
// of them, and only on their first `columns` columns.
template <bool Fast>
__device__ inline void update_vectors(const Layer& layer, Moments& moments,
                                      const int (&at)[4], int count, int columns,
                                      const Adam& adam, const float (&grads)[4][4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (!Fast && i >= count) continue;
        float4 value = get(layer.value + at[i]), &m = moments.m[i], &v = moments.v[i];
        adam.step(value.x, m.x, v.x, grads[i][0]);
        adam.step(value.y, m.y, v.y, grads[i][1]);
        adam.step(value.z, m.z, v.z, grads[i][2]);
        adam.step(value.w, m.w, v.w, grads[i][3]);
        if (!Fast && columns < 4) {  // pads stay 0: with an eps of 0 they are NaN now
            keep(value, columns);
            keep(m, columns);
            keep(v, columns);
        }
        put(layer.value + at[i], value);
    }
}

// One layer: d (B, own features) are the gradients of its outputs, q (B, D) its inputs,
// the only tile of which is there or on its way if `begun`.  A thread has 4 features
// and 4 columns.  Calls after() when nobody reads q or d any more.  The overload
// for tensor cores may hold the moments in registers from step to step.
template <bool Bf16, class After>
__device__ inline void update_layer(const Stage<false>& stage,
                                    const Gradients<false>& d, int features,
                                    const Rows<false>& q, bool begun, int pitch,
                                    const Layer& layer, const Adam& adam, Moments&,
                                    bool, const After& after) {
    const int width = stage.buffers * kDepth;
    const int across = width / 4;  // threads: whole warps
    const int group = thread() / across;
    const int column = thread() % across * 4;
    const float* columns = stage.chunks + column / kDepth * kChunk + column % kDepth;
    update_bias(d, q.rows, features, pitch, layer, adam);
    for (int left = 0; left < q.columns; left += width) {
        for (int feature = 0; feature < features; feature += kFeatures) {
            const int f = feature + group * 4, at = left + column;
            const int count = q.columns - at;
            const int own = group < kFeatures / 4 && count > 0 ? features - f : 0;
            int places[4];
            for (int i = 0; i < 4; ++i) places[i] = (f + i) * pitch + at;
            float sums[4][4] = {};
            for (int row = 0; row < q.rows; row += kRows) {
                if (!begun) {
                    __syncthreads();  // nobody reads the tiles before any more
                    if (!d.whole()) d.begin(row, feature);
                    stage.begin(q, row, left);
                }
                wait_for_copies<0>();
                const bool fresh = !begun || feature == 0;  // else it is being read
                for (int c = 0; Bf16 && fresh && c < stage.buffers; ++c) {
                    Tile<false>::round<Bf16>(stage.chunk(c));
                }
                __syncthreads();
                if (own > 0) {
                    add_rows<Bf16>(columns, d.tile + f, d.pitch,
                                   min(kRows, q.rows - row), sums);
                }
            }
            if (left + width >= q.columns && feature + kFeatures >= features) {
                __syncthreads();
                after();
            }
            if (own > 0) {
                Moments moments;
                moments.load(layer, places, own);
                update_vectors<false>(layer, moments, places, own, count, adam, sums);
                moments.store(layer, places, own);
            }
        }
    }
}

// Where in a layer's slabs the vectors of a thread are, on tensor cores: features g and
// g + 8, of its warp's 32 columns 8 from 8 t on.  Where the moments are in global
// memory it is 4 from 4 t and 4 from 16 + 4 t on: a warp writes whole sectors there.
struct Places {
    int t_columns, i_columns, at[4];

    __device__ Places(const Layer& layer, int pitch, bool held)
        : t_columns(layer.near || held ? 8 : 4),
          i_columns(layer.near || held ? 4 : 16) {
        const int lane = thread() % 32;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            at[i] = (lane / 4 + i / 2 * 8) * pitch + thread() / 32 * 32 +
                    lane % 4 * t_columns + i % 2 * i_columns;
        }
    }
};

// The same on tensor cores, for one tile of features; copying of the first tile of q
// has begun.
template <bool Bf16, class After>
__device__ inline void update_layer(const Stage<true>& stage, const Gradients<true>& d,
                                    int, const Rows<true>& q, bool, int pitch,
                                    const Layer& layer, const Adam& adam,
                                    Moments& moments, bool hold, const After& after) {
    constexpr int width = kBuffers * kDepth;
    static_assert(width == kTrainWarps * 32);
    const int lane = thread() % 32, warp = thread() / 32;
    const int g = lane / 4, t = lane % 4;
    const int column = warp % 4 * 32;  // of chunk warp / 4
    Places places(layer, pitch, hold);
    const float* columns = stage.chunks + warp / 4 * kChunk + t * kPitch + column +
                           g / 2 * places.t_columns + g % 2 * 2;
    update_bias(d, q.rows, kFeatures, pitch, layer, adam);
    for (int left = 0; left < q.columns; left += width) {
        const int first = left + warp / 4 * kDepth + column;
        const bool own = first < q.columns;
        Sums sums[2][2];
        for (int row = 0; row < q.rows; row += kRows) {
            if (!d.whole()) {
                d.begin(row, 0);
                commit_copies();
            }
            wait_for_copies<0>();
            __syncthreads();
#pragma unroll
            for (int k = 0; own && k < kRows; k += 8) {
                Factor<4> a;
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const int r = k + t + j / 2 * 4;
                    const float value = d.tile[r * kFeatures + g + j % 2 * 8];
                    a.template set<Bf16>(j, row + r < q.rows ? value : 0.f);
                }
#pragma unroll
                for (int p = 0; p < 2; ++p) {
                    Factor<2> b[2];
#pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        const float2 v =
                            get2(columns + (k + 4 * j) * kPitch + p * places.i_columns);
                        b[0].template set<Bf16>(j, v.x);
                        b[1].template set<Bf16>(j, v.y);
                    }
                    sums[p][0].template add<Bf16>(a, b[0]);
                    sums[p][1].template add<Bf16>(a, b[1]);
                }
            }
            const bool more_rows = row + kRows < q.rows;
            if (more_rows || left + width < q.columns) {
                __syncthreads();  // nobody reads the tile any more
                stage.begin(q, more_rows ? row + kRows : 0,
                            more_rows ? left : left + width);
            } else if (!std::is_same_v<After, Nothing>) {
                __syncthreads();
                after();
            }
        }
        float grads[4][4];
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            grads[i / 4][i % 4] = sums[i / 4 % 2][i % 2].of[i / 8 * 2 + i / 2 % 2];
        }
        if (own) {
            if (!hold) moments.load(layer, places.at, 4);
            update_vectors<true>(layer, moments, places.at, 4, 4, adam, grads);
            if (!hold) moments.store(layer, places.at, 4);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) places.at[i] += width;
    }
}

}  // namespace fedclip::gpu
