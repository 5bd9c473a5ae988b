// What a launch of round.cuh works on: clients, a block's view of its group, a batch;
// and how a client's state comes onto the chip and leaves it.
#pragma once

#include "loss.cuh"
#include "product.cuh"
#include "update.cuh"

namespace fedclip::gpu {

enum { kW1, kB1, kW2, kB2 };

struct Client {
    const float* x;            // (N, D)
    const std::int64_t* y;     // (N,)
    const std::int64_t* perm;  // (samples,)
    float* state[12];          // w1, b1, w2, b2; exp_avg of these; exp_avg_sq of these
    float* losses;             // (steps,)
    std::int64_t rows, samples, steps;
    std::int64_t first_sample, first_step;  // in the tables of all clients
    bool vectors, state_vectors;            // rows of x, of the state: 16-byte aligned
};

// The classes of every batch, in order of appearance; at first_sample + s * batch_size
// for batch s of a client.
struct ClassTable {
    int* row;      // (samples,) of x: perm
    int* column;   // (samples,) class of a row within its batch
    int* first;    // (samples,) scratch
    int* label;    // of a batch's c-th class
    int* count;    // its rows in the batch
    int* classes;  // (steps,) of a batch
};

struct Round {
    const Client* clients;
    const int *order, *begin;  // see Schedule
    const AdamStep* adam;      // (steps,) of all clients
    ClassTable table;
    const float* text;  // (C, D)
    float* workspace;
    unsigned* barriers;  // kBarrierPitch apart, one a group, zero at the start
    const unsigned long long* error;  // kNoError, or nothing is done
    Shape shape;
    Space space;
    std::int64_t batch_size;
    float one_beta1, one_beta2, weight_decay, logit_scale;
};

constexpr int kBarrierPitch = 64;  // a counter has its cache line for itself
constexpr unsigned long long kNoError = ~0ull;

// One block's view of its group.
struct Block {
    const Round& round;
    const Shape& shape;
    const Space& space;
    int rank, first, features;  // own features: first..first + features
    float *group, *slab_start, *stage, *gate, *small, *stats;
    unsigned* barrier;
    unsigned goal = 0;
    int turn = 0;  // steps so far; exchanged copies alternate

    __device__ explicit Block(const Round& r)
        : round(r), shape(r.shape), space(r.space) {
        const int number = int(blockIdx.x) / shape.group;
        rank = int(blockIdx.x) % shape.group;
        first = rank * shape.features;
        features = min(shape.features, shape.dim - first);
        group = r.workspace + number * space.size;
        slab_start = group + space.slabs + rank * space.block_slabs;
        stage = dynamic_shared() + shape.resident * shape.slab;
        gate = stage + kStage;
        small = gate + kRows * (shape.features + 1);
        stats = group + space.stats + rank * space.block_stats;
        barrier = r.barriers + number * kBarrierPitch;
    }

    // All blocks of the group come here; what they wrote before can be read after.
    __device__ void wait() {
        goal += unsigned(shape.group);
        __syncthreads();
        if (shape.group == 1) return;
        if (threadIdx.x == 0) {
            arrive(barrier);
            while (int(arrived(barrier) - goal) < 0) {
            }
        }
        __syncthreads();
    }

    // Slab 0, 1: w1, w2; 2, 3: exp_avg of w1, exp_avg_sq of w1; 4, 5: those of w2.
    __device__ float* slab(int i) const {
        return i < shape.resident ? dynamic_shared() + i * shape.slab
                                  : slab_start + (i - shape.resident) * shape.slab;
    }
    __device__ Layer layer(int l) const {
        return {slab(l), slab(2 + 2 * l), slab(3 + 2 * l)};
    }
    __device__ float* state(const Client& client, int i, int kind) const {
        constexpr int of_slab[kSlabs] = {kW1, kW2, 4 + kW1, 8 + kW1, 4 + kW2, 8 + kW2};
        return client.state[of_slab[i] + kind];  // kind: 0 weight, 1 bias
    }

    __device__ float* hidden() const {
        return group + space.h + turn % 2 * space.hidden;
    }
    __device__ float* weights_copy(int when) const {
        return group + space.w2 + when % 2 * std::int64_t(shape.dim) * shape.pitch;
    }
    __device__ float* du() const { return group + space.du; }
    __device__ float* e() const { return group + space.e; }  // later da; own features

    // (rows, D) of the group, and the own features of these.
    __device__ Rows all(const float* data, int rows) const {
        return {data, shape.pitch, nullptr, rows, shape.dim, shape.dim % 4 == 0};
    }
    __device__ Rows own(const float* data, int rows) const {
        return {data + first, shape.pitch, nullptr, rows, features, features % 4 == 0};
    }
    // A layer's weights as they are now, rows of own features.
    __device__ Weights weights(int l) const {
        Weights w{nullptr, {}, false, shape.pitch, features};
        if (l < shape.resident) {
            w.shared = dynamic_shared() + l * shape.slab;
        } else {
            w.rows = all(slab(l), features);
        }
        return w;
    }
    // The second layer's, columns of own features.
    __device__ Weights weights_transposed() const {
        const Rows copy{
            weights_copy(turn) + first, shape.pitch, nullptr, shape.dim, features,
            features % 4 == 0};
        return {nullptr, copy, true, 0, features};
    }
    __device__ float bias(int l, int f) const {
        return slab(l)[f * std::int64_t(shape.pitch) + shape.pitch - 1];
    }
};

// One batch of the client in training.
struct Batch {
    const Client* client;
    const int* index;  // (rows,) of x
    int rows, classes;
    const int *column, *label, *count;
    bool small;  // the loss fits into shared memory
    float *logits, *top, *inverse, *row_lse, *column_lse;

    __device__ Batch(const Block& block, const Client& c, std::int64_t step)
        : client(&c) {
        const Round& round = block.round;
        const std::int64_t start = step * round.batch_size;
        const std::int64_t at = c.first_sample + start;
        index = round.table.row + at;
        rows = int(min(round.batch_size, c.samples - start));
        classes = round.table.classes[c.first_step + step];
        column = round.table.column + at;
        label = round.table.label + at;
        count = round.table.count + at;
        small = rows <= kSmallRows && rows * classes <= kSmallLogits;
        if (small) {
            logits = block.small;
            top = logits + kSmallLogits;
            inverse = top + kSmallRows;
            row_lse = inverse + kSmallRows;
            column_lse = row_lse + kSmallRows;
        } else {
            logits = block.group + block.space.logits;
            top = block.group + block.space.top;
            inverse = block.group + block.space.inverse;
            row_lse = block.stats;
            column_lse = row_lse + rows;
        }
    }
    __device__ const float* x(const Block& block, int row) const {
        return client->x + std::int64_t(index[row]) * block.shape.dim;
    }
    __device__ Rows inputs(const Block& block) const {
        return {client->x, block.shape.dim, index,
                rows,      block.shape.dim, client->vectors};
    }
    __device__ Loss loss() const {
        return {rows, classes, logits, column, count, row_lse, column_lse};
    }
};

__device__ inline void load_state(const Block& block, const Client& client) {
    const int dim = block.shape.dim, pitch = block.shape.pitch, vectors = pitch / 4;
    for (int i = 0; i < kSlabs; ++i) {
        float* slab = block.slab(i);
        const float *weight = block.state(client, i, 0),
                    *bias = block.state(client, i, 1);
        const Rows rows{weight, dim, nullptr, dim, dim, client.state_vectors};
#pragma unroll 4
        for (int at = threadIdx.x; at < block.features * vectors; at += kTrainThreads) {
            const int f = at / vectors, k = at % vectors * 4, row = block.first + f;
            float4 v = rows.load(row, k);
            if (k + 4 == pitch) v.w = bias[row];
            put(slab + f * std::int64_t(pitch) + k, v);
            if (i == 1) {
                put(block.weights_copy(block.turn) + row * std::int64_t(pitch) + k, v);
            }
        }
    }
    __syncthreads();
}

__device__ inline void store_state(const Block& block, const Client& client) {
    const int dim = block.shape.dim, pitch = block.shape.pitch;
    const int width = client.state_vectors ? 4 : 1, pieces = dim / width;
    __syncthreads();
    for (int i = 0; i < kSlabs; ++i) {
        const float* slab = block.slab(i);
        float *weight = block.state(client, i, 0), *bias = block.state(client, i, 1);
#pragma unroll 4
        for (int at = threadIdx.x; at < block.features * pieces; at += kTrainThreads) {
            const int f = at / pieces, k = at % pieces * width;
            const float* from = slab + f * std::int64_t(pitch) + k;
            float* to = weight + std::int64_t(block.first + f) * dim + k;
            if (width == 4) {
                put(to, get(from));
            } else {
                *to = *from;
            }
        }
        for (int f = threadIdx.x; f < block.features; f += kTrainThreads) {
            bias[block.first + f] = slab[f * std::int64_t(pitch) + pitch - 1];
        }
    }
    __syncthreads();
}

}  // namespace fedclip::gpu
