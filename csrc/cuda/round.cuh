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
//   update   dw2 = du' h, Adam                 own rows, in front of that barrier
//            dh = du w2, da = dh (1 - h^2)     own features; w2 as it was
//            dw1 = da' x, Adam                 own rows
//
// What a phase reads of global memory is copied to shared memory while the one before
// still runs, wherever no barrier stands between.  All blocks of a launch are resident
// (a cooperative launch), so that a barrier may wait.  Every sum has a fixed order: the
// bits depend on D, the group's size and the kernel that the GPU gets, on nothing else.
#pragma once

#include "block.cuh"

namespace fedclip::gpu {

// Calls finish(r, f, sum over k < D of in[row + r][k] * w[f][k]) for the own features f
// and a tile of rows, `in`; see product.
template <bool Bf16, bool Transposed, class After, class Finish>
__device__ inline void tile_product(const Stage<false>& stage, const Rows<false>& in,
                                    int row, const Weights<false, Transposed>& w,
                                    bool begun, bool, const After& after,
                                    const Finish& finish) {
    for (int feature = 0; feature < w.features; feature += kFeatures) {
        const bool last = feature + kFeatures >= w.features;
        product<Bf16, Transposed>(
            stage, in, row, w, feature, begun && feature == 0,
            [&] {
                if (last) after();
            },
            [&](int r, int f, float sum) {
                if (feature + f < w.features) finish(r, feature + f, sum);
            });
    }
}

// The same on tensor cores, with the first tile begun: copying of the next one begins
// here.
template <bool Bf16, bool Transposed, class After, class Finish>
__device__ inline void tile_product(const Stage<true>& stage, const Rows<true>& in,
                                    int row, const Weights<true, Transposed>& w, bool,
                                    bool ready, const After& after,
                                    const Finish& finish) {
    tensor_product<Bf16>(
        stage, in, row, ready, w,
        [&] {
            if (row + kRows < in.rows) {
                stage.begin(in, row + kRows);
            } else {
                after();
            }
        },
        finish);
}

template <bool Bf16, bool Fast>
__device__ inline void hidden_phase(const Block<Fast>& block,
                                    const Batch<Fast>& batch) {
    const Shape& shape = block.shape();
    const auto w1 = block.weights(0);
    float* h = block.hidden();
    if (!w1.shared()) {  // Adam has just been there
        __syncthreads();
        block.stage().begin_weights(w1, 0, shape.dim);
        commit_copies();
    }
    for (int row = 0; row < batch.rows; row += kRows) {
        tile_product<Bf16>(block.stage(), batch.inputs(block), row, w1, row == 0,
                           batch.whole(block), Nothing{}, [&](int r, int f, float sum) {
                               if (row + r >= batch.rows) return;
                               const float value = tanhf(sum + block.bias(0, f));
                               h[block.row(row + r) + f] = value;
                               if (!batch.tile()) return;
                               block.own().h[r * block.pitch() + f] = value;
                           });
    }
    if (!batch.small()) return;
    for (int at = thread(); at < batch.classes * block.features();
         at += kTrainThreads) {
        const int c = at / block.features(), f = at % block.features();
        const std::int64_t row = std::int64_t(block.small().label[c]) * shape.dim;
        start_copy<4>(block.own().text + c * block.pitch() + f,
                      block.round.text + row + block.first() + f, false);
    }
}

// Scores of a tile of rows in the gate -> e, and this block's part of the rows' norms;
// half a warp a row.
template <bool Fast>
__device__ inline void gate_rows(const Block<Fast>& block, const Batch<Fast>& batch,
                                 int row) {
    const Shape& shape = block.shape();
    static_assert(kTrainThreads == kRows * 16);
    const int lane = thread() % 16, r = thread() / 16, b = row + r;
    const bool inside = b < batch.rows;
    const Rows<Fast> inputs = batch.inputs(block);
    float* gate = block.own().gate + r * (block.pitch() + 1);
    const float* x = batch.tile() ? block.own().x + r * block.pitch()
                     : inside     ? inputs.row(b) + block.first()
                                  : gate;
    float* e = block.e() + block.row(b);
    float top = kLowest, square = 0;
#pragma unroll 1
    for (int f = lane; f < block.features(); f += 16) top = fmaxf(top, gate[f]);
    top = warp_max<16>(top);
#pragma unroll 1
    for (int f = lane; f < block.features(); f += 16) {
        if (!inside) continue;
        const float value = expf(gate[f] - top) * x[f];
        gate[f] = value;
        if (!batch.tile()) e[f] = value;
        square = fmaf(value, value, square);
    }
    square = warp_sum<16>(square);
    if (lane || !inside) return;
    const std::int64_t at = std::int64_t(b) * shape.group + block.rank;
    block.group()[block.space().block_top + at] = top;
    block.group()[block.space().block_square + at] = square;
    if (batch.small()) block.small().own_top[b] = top;
}

// Class c's text for own features.
template <bool Fast>
__device__ inline const float* text_of(const Block<Fast>& block,
                                       const Batch<Fast>& batch, int c) {
    if (batch.small()) return block.own().text + c * block.pitch();
    const int label = block.round.table.label[batch.start + c];
    return block.round.text + std::int64_t(label) * block.shape().dim + block.first();
}

template <bool Bf16, bool Fast>
__device__ inline void scores_phase(const Block<Fast>& block,
                                    const Batch<Fast>& batch) {
    const int group = block.shape().group, classes = batch.classes;
    const int pitch = block.pitch() + 1;
    float* logits = block.group() + block.space().block_logits + block.rank;
    const Rows<Fast> h = block.all(block.hidden(), batch.rows);
    if (Fast) block.stage().begin(h, 0);
    for (int row = 0; row < batch.rows; row += kRows) {
        tile_product<Bf16>(block.stage(), h, row, block.weights(1), false, false,
                           Nothing{}, [&](int r, int f, float sum) {
                               block.own().gate[r * pitch + f] = sum + block.bias(1, f);
                           });
        __syncthreads();
        gate_rows(block, batch, row);
        __syncthreads();
        const int rows = min(kRows, batch.rows - row);
        for (int at = thread(); at < rows * classes; at += kTrainThreads) {
            const float* gate = block.own().gate + at / classes * pitch;
            const float* text = text_of(block, batch, at % classes);
            float sum = 0;
#pragma unroll 16
            for (int f = 0; f < block.features(); ++f)
                sum = fmaf(gate[f], text[f], sum);
            logits[(std::int64_t(row) * classes + at) * group] = sum;
        }
    }
    if (Fast && !batch.whole(block)) block.stage().begin(h, 0);  // for the update
}

// The blocks' parts of some rows -> their largest score, 1 / norm and logits.  Half a
// warp has a row, its lanes every 16th block.
template <bool Fast>
__device__ inline void combine_phase(const Block<Fast>& block,
                                     const Batch<Fast>& batch) {
    constexpr int at_once = 8;  // classes
    const int group = block.shape().group, classes = batch.classes;
    const int first = batch.small() ? 0 : block.rank;
    const int stride = batch.small() ? 1 : group;
    const int rows = (batch.rows - first + stride - 1) / stride;
    const int lane = thread() % 16;
    const Loss loss = batch.loss(block);
    for (int begin = 0; begin < rows; begin += kTrainThreads / 16) {
        const int own = begin + thread() / 16;
        const bool inside = own < rows;
        const std::int64_t b = first + (inside ? own : begin) * std::int64_t(stride);
        const float* tops = block.group() + block.space().block_top + b * group;
        const float* squares = block.group() + block.space().block_square + b * group;
        const float* parts =
            block.group() + block.space().block_logits + b * classes * group;
        float top = kLowest, square = 0;
#pragma unroll 2
        for (int g = lane; g < group; g += 16) top = fmaxf(top, tops[g]);
        top = warp_max<16>(top);
#pragma unroll 2
        for (int g = lane; g < group; g += 16) {
            const float scale = expf(tops[g] - top);
            square = fmaf(squares[g], scale * scale, square);
        }
        // not fmaxf, which would turn NaN into the floor
        const float norm = sqrtf(warp_sum<16>(square));
        const float inverse = 1.f / (norm < kNormFloor ? kNormFloor : norm);
        if (inside && lane == 0) loss.top[b] = top, loss.inverse[b] = inverse;
        for (int c = 0; c < classes; c += at_once) {
            float sums[at_once] = {};
#pragma unroll 2
            for (int g = lane; g < group; g += 16) {
                const float scale = expf(tops[g] - top);
#pragma unroll
                for (int i = 0; i < at_once; ++i) {
                    if (c + i >= classes) continue;
                    sums[i] = fmaf(parts[(c + i) * group + g], scale, sums[i]);
                }
            }
#pragma unroll
            for (int i = 0; i < at_once; ++i) {
                const float sum = warp_sum<16>(sums[i]);
                if (!inside || lane != i || c + i >= classes) continue;
                loss.logits[b * classes + c + i] =
                    block.round.logit_scale * (sum * inverse);
            }
        }
    }
    __syncthreads();
}

// du of own features.
template <bool Fast>
__device__ inline void grad_phase(const Block<Fast>& block, const Batch<Fast>& batch) {
    const Shape& shape = block.shape();
    const Loss loss = batch.loss(block);
    find_row_lse(loss);
    find_column_lse(loss);
    __syncthreads();
    const float* tops = block.group() + block.space().block_top + block.rank;
    const float scale = block.round.logit_scale;
    loss_gradient(
        loss, block.features(), block.stage().scratch,
        [&](int c, int f) { return text_of(block, batch, c)[f]; },
        [&](int b, int f, float sum, float dot) {
            const std::int64_t at = block.row(b) + f;
            const float top = batch.small() ? block.small().own_top[b]
                                            : tops[std::int64_t(b) * shape.group];
            const float e = batch.tile() ? block.own().gate[b * (block.pitch() + 1) + f]
                                         : block.e()[at];
            const float z = e * expf(top - loss.top[b]) * loss.inverse[b];
            const float du = z * (scale * sum - z * dot);
            block.du()[at] = du;
            if (batch.tile()) block.own().x[b * block.pitch() + f] = du;
        });
}

// dh = du w2, with w2 as it was before this step; da.  The first rows of du are
// on their way.
template <bool Bf16, bool Fast>
__device__ inline void hidden_grad(const Block<Fast>& block, const Batch<Fast>& batch) {
    const Rows<Fast> du = block.all(block.du(), batch.rows);
    const auto w2 = block.weights_transposed();
    for (int row = 0; row < batch.rows; row += kRows) {
        tile_product<Bf16>(
            block.stage(), du, row, w2, row == 0, false,
            [&] {
                if (Fast || batch.whole(block)) {
                    block.stage().begin(batch.inputs(block), 0);
                }
            },
            [&](int r, int f, float sum) {
                if (row + r >= batch.rows) return;
                const std::int64_t at = block.row(row + r) + f;
                const int own = r * block.pitch() + f;
                const float h = batch.tile() ? block.own().h[own] : block.hidden()[at];
                const float da = sum * (1 - h * h);
                (batch.tile() ? block.own().x[own] : block.e()[at]) = da;
            });
    }
    __syncthreads();
}

// Both layers' weights; `next` is the client's next batch, if there is `more`, and
// `held` the moments of the second layer, if to `hold`.
template <bool Bf16, bool Fast>
__device__ inline void update_phase(Block<Fast>& block, const Batch<Fast>& batch,
                                    const Batch<Fast>& next, bool more, Moments& held,
                                    bool hold) {
    const int dim = block.shape().dim, pitch = block.shape().pitch;
    const Round& round = block.round;
    const Adam adam{batch.adam, round.one_beta1, round.one_beta2, round.weight_decay};
    const bool whole = batch.whole(block);
    const auto w2 = block.weights_transposed();
    block.stage().begin_weights(w2, 0, dim);
    // h is still there
    update_layer<Bf16>(block.stage(), block.gradients(block.du(), batch.rows),
                       block.features(), block.all(block.hidden(), batch.rows), whole,
                       pitch, block.layer(1), adam, held, hold, Nothing{});
    block.wait();
    block.stage().begin(block.all(block.du(), batch.rows), 0);
    copy_weights(block, block.turn + 1);
    block.begin_phase();
    hidden_grad<Bf16>(block, batch);
    block.begin_phase();
    Moments none;
    update_layer<Bf16>(block.stage(), block.gradients(block.e(), batch.rows),
                       block.features(), batch.inputs(block), whole, pitch,
                       block.layer(0), adam, none, false, [&] {
                           if (more) next.begin(block);
                       });
}

template <bool Bf16, bool Fast>
__device__ inline void train_client(Block<Fast>& block, const Client& client) {
    const auto* from = reinterpret_cast<const float*>(&client);
    auto* to = reinterpret_cast<float*>(&block.client());
    constexpr int size = sizeof(Client) / sizeof(float);
    if (thread() < size) to[thread()] = from[thread()];
    __syncthreads();
    load_state(block);
    Batch<Fast> batch(block, 0);
    batch.begin(block);
    const std::int64_t steps = client.steps;
    // the second layer's moments are in registers, if they are of one band of columns
    const int dim = block.shape().dim, pitch = block.shape().pitch;
    const bool hold = Fast && dim <= kBuffers * kDepth;
    const bool own = hold && thread() < dim;
    Moments held;
    if (own) held.load(block.layer(1), Places(block.layer(1), pitch, true).at, 4);
    for (std::int64_t s = 0; s < steps; ++s, ++block.turn) {
        const bool more = s + 1 < steps;
        const Batch<Fast> next(block, more ? s + 1 : s);
        block.begin_phase();
        hidden_phase<Bf16>(block, batch);
        block.arrive();
        block.wait();
        block.begin_phase();
        scores_phase<Bf16>(block, batch);
        block.arrive();
        block.wait();
        block.begin_phase();
        combine_phase(block, batch);
        if (!batch.small()) {
            block.arrive();
            block.wait();
        }
        block.begin_phase();
        grad_phase(block, batch);
        block.arrive();
        if (block.rank == 0) write_loss(batch.loss(block), block.client().losses + s);
        block.begin_phase();
        update_phase<Bf16>(block, batch, next, more, held, hold);
        batch = next;
    }
    if (own) held.store(block.layer(1), Places(block.layer(1), pitch, true).at, 4);
    store_state(block);
}

template <bool Bf16, bool Fast>
__global__ void __launch_bounds__(kTrainThreads, 1) train_round(const Round round) {
    if constexpr (!Fast || kTensorCores) {
        if (*round.error != kNoError) return;
        Block<Fast> block(round);
        const int* clients = round.begin + block.number;
        for (int i = clients[0]; i < clients[1]; ++i) {
            train_client<Bf16>(block, round.clients[round.order[i]]);
        }
    }
}

}  // namespace fedclip::gpu
