// The kernels of one instruction set, as functions on plain pointers and sizes.
//
// A training step is a sequence of phases.  A phase is split into units of work that do
// not depend on one another; a unit computes the same bits on whichever thread.
//
// With P = 2 * lanes of the instruction set, a matrix of B rows and D features is kept
// in one or both of two forms:
//
//   chunks  [chunk][feature][row]   P rows side by side, in the lanes of two vectors;
//                                   a last chunk of at most `lanes` rows is one vector
//                                   wide.  Rows past B are zero.
//   panels  [panel][row][feature]   P features side by side.
//
// In bfloat16 an element of a product's factor is a Pair of numbers that follow one
// another along the sum: two features in chunks, two rows in panels.
//
// Chunks make softmax, norm and tanh vertical, and feed a layer's product without any
// transposition; panels are what a weight gradient streams, in the order of the
// weights.
#pragma once

#include <cstdint>

#include "cpu/pair.h"

namespace fedclip::cpu {

// Row b, panel p, lane l is at data[p * panel + b * row + l].
template <class T>
struct PanelsOf {
    T* data;
    std::int64_t row, panel;
};
using Panels = PanelsOf<float>;

// `before` is what a step reads: `value` itself but for the first step from a start
// that clients share.
struct Parameter {
    float *value, *exp_avg, *exp_avg_sq;
    const float* before;
};

struct Layer {
    Parameter weight, bias;
};

// torch.optim.Adam with its bias corrections folded in, c = sqrt(1 - beta2^t).
struct Adam {
    float rate;  // lr c / (1 - beta1^t)
    float one_beta1, one_beta2;
    float eps;  // eps c
    float weight_decay;
    bool fresh;  // the moments are zeros, and not read
    bool last;   // of its training: neither the moments are written nor other forms of
                 // the weights than `value`
};

// What the five products of a training step read, as T: float or Pair.
template <class T>
struct Factors {
    T *x, *h, *du;         // chunks
    T *du_rows, *da_rows;  // the same chunks, but a Pair is two rows of one feature
    PanelsOf<T> x_panels, h_panels;
    const T* weight[2];  // row-major
    std::int64_t weight_row;
    T* w2_panels;  // w2 in panels: its columns without a long stride
};

// One batch of one client: what a phase reads and writes.
struct Batch {
    std::int64_t rows, dim, classes;  // B, D, and P classes in this batch

    const float* x;  // row b of the batch is x + index[b] * x_row
    std::int64_t x_row;
    const std::int64_t* index;  // null: the rows in order
    const std::int64_t* next;   // the rows of the next batch, to be fetched ahead
    std::int64_t next_rows;

    const float* text;           // (P, D) of the classes in this batch
    const std::int64_t* column;  // (B,) row of `text` of each row
    const float* count;          // (P,) rows of each class
    float logit_scale;

    Layer layer[2];
    Adam adam;
    float* loss;

    // Buffers.  Chunks: `x, h, z, du, da` (D), `logits, column_exp` (P).
    float *x_chunks, *h_chunks, *z_chunks, *du_chunks, *da_chunks;
    float *logits, *column_exp;
    float* column_lse;  // (P,) and, behind it, (P,) count / sum of exp
    float* dot;         // (B padded,) <z, dz>
    Panels x_panels, h_panels;
    Panels z_panels;  // data null: not wanted
    float* w2_panels;
    Factors<Pair> pairs;  // for training in bfloat16

    // The backward operator alone.
    const float *h, *z, *dz, *dh;  // (B, D); dh may be null
    bool accumulate;               // add to the gradients in `layer[].*.value`
};

using Phase = void (*)(const Batch&, std::int64_t unit);

// The phases around the five products.
struct Products {
    Phase pack_weights;          // by 2 * lanes features, once an epoch
    Phase load, hidden, scores;  // by `lanes` rows (load) or 2 * lanes features
    Phase grad_scores, grad_hidden;
    Phase update;  // twice the feature units: the second layer, the first
};

struct Kernels {
    std::int64_t lanes;
    Products fp32, bf16;
    Phase gate, gate_and_logits;  // by `lanes` rows
    Phase loss;                   // one unit
    // The backward operator: load and gate_backward by `lanes` rows.
    Phase load_backward, gate_backward, grad_weights;

    // out[k] = sum_i shares[i] xs[i][k] for `count` elements from k = begin on; at most
    // kMeanBlock.
    void (*mean)(const float* const* xs, const float* shares, std::int64_t clients,
                 std::int64_t begin, std::int64_t count, float* out);
    // The same of int8, for rows top .. top + rows - 1 of `columns` elements, from
    // k = begin on; at most kMeanBlock elements.  Client i has the share
    // shares[i] * scales[i][row] of a row.
    void (*mean_int8)(const signed char* const* qs, const float* const* scales,
                      const double* shares, std::int64_t clients, std::int64_t top,
                      std::int64_t rows, std::int64_t columns, std::int64_t begin,
                      float* out);
    // |x - origin|^2 over `count` elements.
    double (*squared_distance)(const float* x, const float* origin, std::int64_t count);
    // sum_r |scales[r] q[r]|^2 over rows of `columns` elements.
    double (*squared_norm_int8)(const signed char* q, const float* scales,
                                std::int64_t rows, std::int64_t columns);
    // Benchmarks: rounds * kPeakFmas FMAs of a register, and a plain read.
    float (*fma_peak)(std::int64_t rounds);
    float (*read)(const float* data, std::int64_t count);
};

// Elements of a mean summed at a time.  Long stretches of each client's memory matter
// more than float64 sums in L1: 16 pages of floats or 4 of int8 a client, with 128 KB
// of sums in L2.
constexpr std::int64_t kMeanBlock = 16384;
constexpr int kPeakFmas = 120;
constexpr std::int64_t kLine = 16;  // floats of a cache line

extern const Kernels kernels_generic, kernels_avx2, kernels_avx512, kernels_avx512bf16;

// Those of the instruction set in use, see isa.h.
const Kernels& kernels();

}  // namespace fedclip::cpu
