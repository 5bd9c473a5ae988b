// How a round is laid out on the device: the share of a block, what stays in shared
// memory, where the rest is, and which group of blocks trains which clients.  Plain
// C++, no CUDA.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "steps.h"

namespace fedclip::gpu {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kTrainThreads = 512;  // of a block of local_round
constexpr int kTrainWarps = kTrainThreads / 32;
constexpr int kRows = 32;                         // of a tile
constexpr int kFeatures = 16;                     // of a tile
constexpr int kDepth = 128;                       // terms of a tile's sums at a time
constexpr int kPitch = kDepth + 4;                // + 4: rows start in different banks
constexpr int kChunk = kRows * kPitch;            // floats: kDepth terms of a tile
constexpr int kWeightChunk = kFeatures * kPitch;  // of weights
constexpr int kBuffers = 4;                       // chunks of a tile at once
constexpr int kScratch = 2 * kWeightChunk;        // also for what a phase adds up
constexpr int kSlabs = 6;  // w1, w2 and their moments: a block's rows
constexpr int kSmallRows = 64, kSmallLogits = 1024;  // a loss in shared memory,
constexpr int kSmallClasses = 32;                    // of no more classes than rows
constexpr int kSmall = kSmallLogits + 5 * kSmallRows + 3 * kSmallClasses;
constexpr int kClient = 48;  // floats: what a block knows of its client

// Columns of a matrix in memory; rows start in different banks, 16 bytes aligned.  The
// last column of a slab's row holds the feature's bias.
inline int pitch_of(int dim) { return (dim + 31) / 32 * 32 + 4; }

// Where in a block's shared memory what is, in floats: what has the same size in all
// rounds first.  `features` of a block, chunks in `buffers`.
struct Layout {
    int scratch, x, h, text, gate, chunks, slabs;

    constexpr Layout(int features, int buffers)
        : scratch(kSmall + kClient),
          x(scratch + kScratch),
          h(x + kRows * features),
          text(h + kRows * features),
          gate(text + kSmallClasses * features),
          chunks(gate + kRows * (features + 1)),
          slabs(chunks + buffers * kChunk) {}
};

struct Shape {
    int dim, pitch;
    int features;       // of a block, a multiple of 4; the last block may have fewer
    int group;          // blocks that train one client
    int resident;       // slabs in shared memory, the first ones
    int buffers;        // chunks of a tile of rows in shared memory
    std::int64_t slab;  // floats of one

    // Blocks of one tile of features, whole chunks, weights in shared memory.
    bool fast() const {
        return features == kFeatures && dim % kDepth == 0 && resident >= 2 &&
               buffers == kBuffers;
    }
    std::int64_t shared_floats() const {
        return resident * slab + Layout(features, buffers).slabs;
    }
};

inline int multiple_of_4(int value) { return (value + 3) / 4 * 4; }

inline Shape shape_of(int dim, int features, std::int64_t shared_limit) {
    const int pitch = pitch_of(dim), group = (dim + features - 1) / features;
    Shape shape{
        dim, pitch, features, group, kSlabs, kBuffers, std::int64_t(features) * pitch};
    while (shape.resident > 0 && shape.shared_floats() > shared_limit) --shape.resident;
    while (shape.buffers > 1 && shape.shared_floats() > shared_limit) --shape.buffers;
    return shape;
}

// One tile of features a block where D is whole chunks, as fast rounds need it; else
// the largest share of a block with all slabs in shared memory, but at least a tile's:
// with fewer its products take as long, on more blocks.  Where that does not fit, takes
// more blocks than there are, or `group` asks for another share, the last slabs
// (moments first) are in global memory, that is the L2 cache.  It does not depend on
// the clients, so neither do a client's bits.
inline Shape choose_shape(int dim, int blocks, std::int64_t shared_limit, int group) {
    const int least = multiple_of_4((dim + blocks - 1) / blocks);
    if (group > 0) {
        const int features = multiple_of_4((dim + group - 1) / group);
        return shape_of(dim, std::max(features, least), shared_limit);
    }
    int features = dim % kDepth == 0 ? kFeatures : multiple_of_4(dim);
    while (features > kFeatures &&
           shape_of(dim, features, shared_limit).resident < kSlabs) {
        features -= 4;
    }
    if (features < dim) features -= features % kFeatures;  // whole tiles
    return shape_of(dim, std::max(features, least), shared_limit);
}

// Where a group's buffers start in its part of the workspace, in floats.
struct Space {
    std::int64_t h, du, e, w2, top, inverse, block_top, block_square, block_logits,
        logits, slabs, stats, size;
    std::int64_t block_slabs, block_stats;  // floats of each block
    std::int64_t hidden;                    // of one of the two copies of h

    Space() = default;
    Space(const Shape& shape, std::int64_t rows, std::int64_t classes) {
        const std::int64_t group = shape.group, pitch = shape.pitch;
        block_slabs = (kSlabs - shape.resident) * shape.slab;
        block_stats = aligned(rows + classes);
        hidden = rows * pitch;
        size = 0;
        h = take(2 * hidden);
        du = take(rows * pitch);
        e = take(rows * pitch);
        w2 = take(2 * shape.dim * pitch);
        top = take(rows);
        inverse = take(rows);
        block_top = take(rows * group);
        block_square = take(rows * group);
        block_logits = take(rows * group * classes);
        logits = take(rows * classes);
        slabs = take(group * block_slabs);
        stats = take(group * block_stats);
    }

  private:
    static std::int64_t aligned(std::int64_t floats) { return (floats + 31) / 32 * 32; }
    std::int64_t take(std::int64_t floats) {
        const std::int64_t start = size;
        size += aligned(floats);
        return start;
    }
};

// Clients in groups of about equal work: the longest first, each to the group with the
// least so far.  order[begin[g]..begin[g + 1]) are the clients of group g.
struct Schedule {
    std::vector<int> order, begin;
};

inline Schedule share_out_clients(const std::vector<std::int64_t>& steps, int groups) {
    std::vector<int> longest(steps.size());
    std::iota(longest.begin(), longest.end(), 0);
    std::stable_sort(longest.begin(), longest.end(),
                     [&](int a, int b) { return steps[a] > steps[b]; });
    std::vector<std::vector<int>> lists(groups);
    std::vector<std::int64_t> load(groups, 0);
    for (const int client : longest) {
        if (steps[client] == 0) continue;
        const auto least = std::min_element(load.begin(), load.end()) - load.begin();
        lists[least].push_back(client);
        load[least] += steps[client];
    }
    Schedule schedule;
    for (const auto& list : lists) {
        schedule.begin.push_back(int(schedule.order.size()));
        schedule.order.insert(schedule.order.end(), list.begin(), list.end());
    }
    schedule.begin.push_back(int(schedule.order.size()));
    return schedule;
}

}  // namespace fedclip::gpu
