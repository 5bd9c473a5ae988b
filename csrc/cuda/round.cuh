// Local training of all clients in one kernel.
//
// The blocks form groups; a group trains one client at a time, through a whole epoch.
// Block r of a group owns some features: their rows of both weights with Adam's moments
// stay in shared memory as far as they fit.  What the blocks of a group exchange goes
// through global memory, that is the L2 cache.  A step:
//
//   hidden   h = tanh(x w1' + b1)              own features, all rows      | barrier
//   scores   u = h w2' + b2; e = exp(u - own max) x; its part of |e|^2 and of e t'
//                                                                          | barrier
//   combine  the parts -> 1 / |e| and the logits; by every block for itself if they are
//            few, else by some rows each                                   | barrier
//   grad     dL; du = z (dz - z <z, dz>)       own features                | barrier
//   update   dh = du w2, da = dh (1 - h^2)     own features
//            dw2 = du' h, dw1 = da' x, Adam    own rows
//
// All blocks of a launch are resident (a cooperative launch), so that a barrier may
// wait.  Every sum has a fixed order: the bits depend on the group's size alone.
#pragma once

#include "block.cuh"

namespace fedclip::gpu {

template <bool Bf16>
__device__ inline void hidden_phase(const Block& block, const Batch& batch) {
    const Shape& shape = block.shape;
    float* h = block.hidden() + block.first;
    for (int row = 0; row < batch.rows; row += kRows) {
        for (int feature = 0; feature < block.features; feature += kFeatures) {
            product<Bf16>(block.stage, batch.inputs(block), row, block.weights(0),
                          feature, shape.dim, [&](int r, int f, float sum) {
                              if (row + r >= batch.rows) return;
                              if (feature + f >= block.features) return;
                              const float a = sum + block.bias(0, feature + f);
                              h[std::int64_t(row + r) * shape.pitch + feature + f] =
                                  tanhf(a);
                          });
        }
    }
}

// Scores of a tile of rows in `gate` -> e, and this block's part of the row's norm.
__device__ inline void gate_rows(const Block& block, const Batch& batch, int row) {
    const Shape& shape = block.shape;
    const int lane = threadIdx.x % 32, group = shape.group;
    for (int r = threadIdx.x / 32; r < min(kRows, batch.rows - row); r += kTrainWarps) {
        const int b = row + r;
        float* gate = block.gate + r * (shape.features + 1);
        const float* x = batch.x(block, b) + block.first;
        float* e = block.e() + std::int64_t(b) * shape.pitch + block.first;
        float top = kLowest, square = 0;
        for (int f = lane; f < block.features; f += 32) top = fmaxf(top, gate[f]);
        top = warp_max(top);
        for (int f = lane; f < block.features; f += 32) {
            const float value = expf(gate[f] - top) * x[f];
            gate[f] = e[f] = value;
            square = fmaf(value, value, square);
        }
        square = warp_sum(square);
        if (lane) continue;
        const std::int64_t at = std::int64_t(b) * group + block.rank;
        block.group[block.space.block_top + at] = top;
        block.group[block.space.block_square + at] = square;
    }
}

template <bool Bf16>
__device__ inline void scores_phase(const Block& block, const Batch& batch) {
    const Shape& shape = block.shape;
    const int pitch = shape.features + 1, classes = batch.classes;
    float* logits = block.group + block.space.block_logits +
                    block.rank * std::int64_t(batch.rows) * classes;
    const Rows h = block.all(block.hidden(), batch.rows);
    for (int row = 0; row < batch.rows; row += kRows) {
        for (int feature = 0; feature < block.features; feature += kFeatures) {
            product<Bf16>(block.stage, h, row, block.weights(1), feature, shape.dim,
                          [&](int r, int f, float sum) {
                              if (feature + f >= block.features) return;
                              block.gate[r * pitch + feature + f] =
                                  sum + block.bias(1, feature + f);
                          });
        }
        __syncthreads();
        gate_rows(block, batch, row);
        __syncthreads();
        const int rows = min(kRows, batch.rows - row);
        for (int at = threadIdx.x; at < rows * classes; at += kTrainThreads) {
            const float* gate = block.gate + at / classes * pitch;
            const float* text = block.round.text +
                                std::int64_t(batch.label[at % classes]) * shape.dim +
                                block.first;
            float sum = 0;
#pragma unroll 16
            for (int f = 0; f < block.features; ++f) sum = fmaf(gate[f], text[f], sum);
            logits[std::int64_t(row) * classes + at] = sum;
        }
        __syncthreads();
    }
}

// The parts of row b -> its largest score and 1 / norm, and in `scales` what the logits
// of each block are to be multiplied by: a warp's work.
__device__ inline void combine_row(const Block& block, const Batch& batch, int b,
                                   float* scales) {
    const int group = block.shape.group, lane = threadIdx.x % 32;
    const float* tops = block.group + block.space.block_top + std::int64_t(b) * group;
    const float* squares =
        block.group + block.space.block_square + std::int64_t(b) * group;
    float top = kLowest, square = 0;
    for (int g = lane; g < group; g += 32) top = fmaxf(top, tops[g]);
    top = warp_max(top);
    for (int g = lane; g < group; g += 32) {
        const float scale = expf(tops[g] - top);
        scales[g] = scale;
        square = fmaf(squares[g], scale * scale, square);
    }
    square = warp_sum(square);
    if (lane) return;
    batch.top[b] = top;
    // not fmaxf, which would turn NaN into the floor
    const float norm = sqrtf(square);
    batch.inverse[b] = 1.f / (norm < kNormFloor ? kNormFloor : norm);
}

// The blocks' parts of some rows -> their largest score, 1 / norm and logits.
__device__ inline void combine_phase(const Block& block, const Batch& batch) {
    const int group = block.shape.group, classes = batch.classes;
    const int first = batch.small ? 0 : block.rank;
    const int stride = batch.small ? 1 : group;
    const float* parts = block.group + block.space.block_logits;
    const std::int64_t size = std::int64_t(batch.rows) * classes;
    const int rows = (batch.rows - first + stride - 1) / stride;
    const int room = kStage / group;  // rows whose scales fit
    for (int begin = 0; begin < rows; begin += room) {
        const int count = min(room, rows - begin);
        for (int r = threadIdx.x / 32; r < count; r += kTrainWarps) {
            combine_row(block, batch, first + (begin + r) * stride,
                        block.stage + r * group);
        }
        __syncthreads();
        for (std::int64_t at = threadIdx.x; at < std::int64_t(count) * classes;
             at += kTrainThreads) {
            const int r = int(at / classes), c = int(at % classes);
            const int b = first + (begin + r) * stride;
            const std::int64_t to = std::int64_t(b) * classes + c;
            const float* scales = block.stage + r * group;
            float sum = 0;
#pragma unroll 16
            for (int g = 0; g < group; ++g) {
                sum = fmaf(parts[g * size + to], scales[g], sum);
            }
            batch.logits[to] = block.round.logit_scale * (sum * batch.inverse[b]);
        }
        __syncthreads();
    }
}

// du of own features, and the loss.
__device__ inline void grad_phase(const Block& block, const Batch& batch, float* out) {
    const Shape& shape = block.shape;
    const Loss loss = batch.loss();
    find_row_lse(loss);
    find_column_lse(loss, block.stage);
    __syncthreads();
    if (block.rank == 0) write_loss(loss, out);
    const float* tops = block.group + block.space.block_top + block.rank;
    const float* text = block.round.text + block.first;
    const float scale = block.round.logit_scale;
    loss_gradient(
        loss, block.features, block.stage,
        [&](int c, int f) {
            return text[std::int64_t(batch.label[c]) * shape.dim + f];
        },
        [&](int b, int f, float sum, float dot) {
            const std::int64_t at = std::int64_t(b) * shape.pitch + block.first + f;
            const float part = expf(tops[std::int64_t(b) * shape.group] - batch.top[b]);
            const float z = block.e()[at] * part * batch.inverse[b];
            block.du()[at] = z * (scale * sum - z * dot);
        });
}

template <bool Bf16>
__device__ inline void update_phase(const Block& block, const Batch& batch,
                                    const AdamStep& step) {
    const Shape& shape = block.shape;
    const Round& round = block.round;
    const float* h = block.hidden();
    float* da = block.e();
    const Rows du = block.all(block.du(), batch.rows);
    for (int row = 0; row < batch.rows; row += kRows) {
        for (int feature = 0; feature < block.features; feature += kFeatures) {
            product<Bf16>(block.stage, du, row, block.weights_transposed(), feature,
                          shape.dim, [&](int r, int f, float sum) {
                              if (row + r >= batch.rows) return;
                              if (feature + f >= block.features) return;
                              const std::int64_t at =
                                  std::int64_t(row + r) * shape.pitch + block.first +
                                  feature + f;
                              da[at] = sum * (1 - h[at] * h[at]);
                          });
        }
    }
    __syncthreads();
    const Adam adam{step, round.one_beta1, round.one_beta2, round.weight_decay};
    float* copy =
        block.weights_copy(block.turn + 1) + block.first * std::int64_t(shape.pitch);
    update_layer<Bf16>(block.stage, block.own(block.du(), batch.rows), block.features,
                       block.all(h, batch.rows), shape.pitch, block.layer(1), adam,
                       copy);
    update_layer<Bf16>(block.stage, block.own(da, batch.rows), block.features,
                       batch.inputs(block), shape.pitch, block.layer(0), adam, nullptr);
    __syncthreads();
}

template <bool Bf16>
__device__ inline void train_client(Block& block, const Client& client) {
    load_state(block, client);
    for (std::int64_t s = 0; s < client.steps; ++s, ++block.turn) {
        const Batch batch(block, client, s);
        hidden_phase<Bf16>(block, batch);
        block.wait();
        scores_phase<Bf16>(block, batch);
        block.wait();
        combine_phase(block, batch);
        if (!batch.small) block.wait();
        grad_phase(block, batch, client.losses + s);
        block.wait();
        update_phase<Bf16>(block, batch, block.round.adam[client.first_step + s]);
    }
    store_state(block, client);
}

template <bool Bf16>
__global__ void __launch_bounds__(kTrainThreads, 1) train_round(const Round round) {
    if (*round.error != kNoError) return;
    Block block(round);
    const int group = int(blockIdx.x) / round.shape.group;
    for (int i = round.begin[group]; i < round.begin[group + 1]; ++i) {
        train_client<Bf16>(block, round.clients[round.order[i]]);
    }
}

}  // namespace fedclip::gpu
