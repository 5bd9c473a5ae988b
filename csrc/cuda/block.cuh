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

// A block's own features in shared memory, rows of `pitch` floats but for the gate.
struct Own {
    float* gate;  // (kRows, pitch + 1): scores, then e; of a tile of rows
    float* x;  // (kRows, pitch): x of a batch of one tile; from the loss on gradients
    float* h;  // (kRows, pitch), likewise
    float* text;  // (kSmallClasses, pitch) of a small loss
    int pitch;
};

// A small loss in shared memory.
struct Small {
    float *logits, *top, *inverse, *row_lse, *column_lse, *own_top;
    int *column, *label, *count;

    __device__ explicit Small(float* start)
        : logits(start),
          top(logits + kSmallLogits),
          inverse(top + kSmallRows),
          row_lse(inverse + kSmallRows),
          column_lse(row_lse + kSmallRows),
          own_top(column_lse + kSmallClasses),
          column(reinterpret_cast<int*>(own_top + kSmallRows)),
          label(column + kSmallRows),
          count(label + kSmallClasses) {}
};

// One block's view of its group.  It holds little and finds the rest: what a thread
// cannot keep in registers would go to global memory.
template <bool Fast>
struct Block {
    const Round& round;
    int number, rank;  // of the group, in the group
    unsigned goal = 0;
    int turn = 0;  // steps so far; exchanged copies alternate

    __device__ explicit Block(const Round& r)
        : round(r),
          number(int(blockIdx.x) / r.shape.group),
          rank(int(blockIdx.x) % r.shape.group) {}

    __device__ void begin_phase() { renew(number), renew(rank), renew(turn); }
    __device__ const Shape& shape() const { return round.shape; }
    __device__ const Space& space() const { return round.space; }
    __device__ int pitch() const { return Fast ? kFeatures : shape().features; }
    __device__ int first() const { return rank * pitch(); }  // of its own features
    __device__ int features() const {                        // how many
        return Fast ? kFeatures : min(shape().features, shape().dim - first());
    }
    __device__ Layout layout() const {
        return Layout(pitch(), Fast ? kBuffers : shape().buffers);
    }
    __device__ Small small() const { return Small(dynamic_shared()); }
    __device__ Client& client() const {
        static_assert(sizeof(Client) <= kClient * sizeof(float));
        return *reinterpret_cast<Client*>(dynamic_shared() + kSmall);
    }
    __device__ Stage<Fast> stage() const {
        float* shared = dynamic_shared();
        return {shared + layout().chunks, shared + layout().scratch, shape().buffers};
    }
    __device__ Own own() const {
        float* shared = dynamic_shared();
        return {shared + layout().gate, shared + layout().x, shared + layout().h,
                shared + layout().text, pitch()};
    }
    __device__ float* group() const { return round.workspace + number * space().size; }
    __device__ float* stats() const {
        return group() + space().stats + rank * space().block_stats;
    }
    __device__ unsigned* barrier() const {
        return round.barriers + number * kBarrierPitch;
    }

    // What a block wrote before it arrives can be read by the others after they waited
    // for all blocks of the group.
    __device__ void arrive() {
        goal += unsigned(shape().group);
        __syncthreads();
        if (shape().group > 1 && thread() == 0) gpu::arrive(barrier());
    }
    __device__ void wait() {
        if (shape().group > 1 && thread() == 0) {
            while (int(arrived(barrier()) - goal) < 0) {
            }
        }
        __syncthreads();
    }

    // Slab 0, 1: w1, w2; 2, 3: exp_avg of w1, exp_avg_sq of w1; 4, 5: those of w2.
    __device__ float* slab(int i) const {
        if ((Fast && i < 2) || i < shape().resident) {
            return dynamic_shared() + layout().slabs + i * int(shape().slab);
        }
        return group() + space().slabs + rank * space().block_slabs +
               (i - shape().resident) * shape().slab;
    }
    __device__ Layer layer(int l) const {
        return {slab(l), slab(2 + 2 * l), slab(3 + 2 * l),
                4 + 2 * l <= shape().resident};
    }
    __device__ float* state(int i, int kind) const {
        constexpr int of_slab[kSlabs] = {kW1, kW2, 4 + kW1, 8 + kW1, 4 + kW2, 8 + kW2};
        return client().state[of_slab[i] + kind];  // kind: 0 weight, 1 bias
    }

    __device__ float* hidden() const {
        return group() + space().h + turn % 2 * space().hidden;
    }
    __device__ float* weights_copy(int when) const {
        return group() + space().w2 +
               when % 2 * std::int64_t(shape().dim) * shape().pitch;
    }
    __device__ float* du() const { return group() + space().du; }
    __device__ float* e() const { return group() + space().e; }  // later da; own

    // (rows, D) of the group.
    __device__ Rows<Fast> all(const float* data, int rows) const {
        const int dim = shape().dim;
        return {data, shape().pitch, nullptr, rows, dim, dim % 4 == 0};
    }
    // The own features of gradients (rows, D); `own().x` holds one tile of them.
    __device__ Gradients<Fast> gradients(const float* data, int rows) const {
        const int count = features();
        return {{data + first(), shape().pitch, nullptr, rows, count, count % 4 == 0},
                own().x,
                pitch()};
    }
    // A layer's weights as they are now, rows of own features.
    __device__ Weights<Fast, false> weights(int l) const {
        const int count = features();
        if (Fast || l < shape().resident) {
            return {slab(l), {}, shape().pitch, count};
        }
        return {nullptr, all(slab(l), count), shape().pitch, count};
    }
    // The second layer's, columns of own features.
    __device__ Weights<Fast, true> weights_transposed() const {
        const int count = features();
        const float* copy = weights_copy(turn) + first();
        return {nullptr,
                {copy, shape().pitch, nullptr, shape().dim, count, count % 4 == 0},
                0,
                count};
    }
    // Where row b of (rows, D) begins, of own features.
    __device__ std::int64_t row(int b) const {
        return std::int64_t(b) * shape().pitch + first();
    }
    __device__ float bias(int l, int f) const {
        return slab(l)[f * shape().pitch + shape().pitch - 1];
    }
};

// One batch of the client in training.
template <bool Fast>
struct Batch {
    std::int64_t start;  // in the tables
    int rows, classes;
    AdamStep adam;

    __device__ Batch(const Block<Fast>& block, std::int64_t step) {
        const Round& round = block.round;
        const Client& client = block.client();
        const std::int64_t first = step * round.batch_size;
        start = client.first_sample + first;
        rows = int(min(round.batch_size, client.samples - first));
        classes = round.table.classes[client.first_step + step];
        adam = round.adam[client.first_step + step];
    }
    // One tile of rows; the loss fits into shared memory.
    __device__ bool tile() const { return rows <= kRows; }
    __device__ bool small() const {
        return rows <= kSmallRows && rows * classes <= kSmallLogits;
    }
    // The only tile of (rows, D) is in shared memory as a whole.
    __device__ bool whole(const Block<Fast>& block) const {
        return tile() && block.shape().dim <= block.shape().buffers * kDepth;
    }
    __device__ Rows<Fast> inputs(const Block<Fast>& block) const {
        const int dim = block.shape().dim;
        return {block.client().x, dim, block.round.table.row + start, rows, dim,
                dim % 4 == 0};
    }
    __device__ Loss loss(const Block<Fast>& block) const {
        const Small s = block.small();
        if (small()) {
            return {rows,    classes,   s.logits,     s.column, s.count,
                    s.label, s.row_lse, s.column_lse, s.top,    s.inverse};
        }
        const ClassTable& table = block.round.table;
        const Space& space = block.space();
        return {rows,
                classes,
                block.group() + space.logits,
                table.column + start,
                table.count + start,
                table.label + start,
                block.stats(),
                block.stats() + rows,
                block.group() + space.top,
                block.group() + space.inverse};
    }
    // Starts copying what the step reads first.
    __device__ void begin(const Block<Fast>& block) const {
        const int t = thread();
        const Small s = block.small();
        const ClassTable& table = block.round.table;
        const auto copy = [](int* to, const int* from) {
            start_copy<4>(reinterpret_cast<float*>(to),
                          reinterpret_cast<const float*>(from), false);
        };
        if (small()) {
            if (t < rows) copy(s.column + t, table.column + start + t);
            if (t < classes) {
                copy(s.label + t, table.label + start + t);
                copy(s.count + t, table.count + start + t);
            }
        }
        const Rows<Fast> x = inputs(block);
        const Own own = block.own();
        const int across = own.pitch / 4;
        for (int at = t; tile() && at < kRows * across; at += kTrainThreads) {
            const int r = at / across, f = at % across * 4;
            x.copy_row(own.x + r * own.pitch + f, r, block.first() + f);
        }
        block.stage().begin(x, 0);
    }
};

// The second layer's weights for others to read.
template <bool Fast>
__device__ inline void copy_weights(const Block<Fast>& block, int when) {
    const int pitch = block.shape().pitch, lane = thread() % 32;
    for (int f = thread() / 32; f < block.features(); f += kTrainWarps) {
        const float* from = block.slab(1) + f * pitch;
        float* to =
            block.weights_copy(when) + (block.first() + f) * std::int64_t(pitch);
#pragma unroll 4
        for (int k = lane * 4; k < pitch - 4; k += 128) put(to + k, get(from + k));
    }
}

template <bool Fast>
__device__ inline void load_state(const Block<Fast>& block) {
    const int dim = block.shape().dim, pitch = block.shape().pitch;
    const int lane = thread() % 32, warp = thread() / 32;
    for (int i = 0; i < kSlabs; ++i) {
        const bool resident = i < block.shape().resident;
        float* slab = block.slab(i);
        const float* bias = block.state(i, 1);
        const Rows<Fast> rows{block.state(i, 0), dim, nullptr, dim, dim, dim % 4 == 0};
        for (int f = warp; f < block.features(); f += kTrainWarps) {
            const float* from = rows.row(block.first() + f);
            float* to = slab + f * std::int64_t(pitch);
#pragma unroll 4
            for (int k = lane * 4; k < pitch - 4; k += 128) {
                if (resident) {
                    rows.copy(to + k, from, true, k);
                } else {
                    put(to + k, rows.load(from, k));
                }
            }
            if (lane == 0) {
                put(to + pitch - 4, make_float4(0, 0, 0, bias[block.first() + f]));
            }
        }
    }
    commit_copies();
    wait_for_copies<0>();
    __syncthreads();
    copy_weights(block, block.turn);
}

template <bool Fast>
__device__ inline void store_state(const Block<Fast>& block) {
    const int dim = block.shape().dim, pitch = block.shape().pitch;
    const int lane = thread() % 32, warp = thread() / 32;
    const int width = Fast || dim % 4 == 0 ? 4 : 1;
    __syncthreads();
    for (int i = 0; i < kSlabs; ++i) {
        float *weight = block.state(i, 0), *bias = block.state(i, 1);
        for (int f = warp; f < block.features(); f += kTrainWarps) {
            const float* from = block.slab(i) + f * std::int64_t(pitch);
            float* to = weight + std::int64_t(block.first() + f) * dim;
#pragma unroll 4
            for (int k = lane * width; k < dim; k += 32 * width) {
                if (width == 4) {
                    put(to + k, get(from + k));
                } else {
                    to[k] = from[k];
                }
            }
            if (lane == 0) bias[block.first() + f] = from[pitch - 1];
        }
    }
    __syncthreads();
}

}  // namespace fedclip::gpu
