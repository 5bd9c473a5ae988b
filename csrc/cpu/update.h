// Weight gradients dW = d' q, and Adam on each tile as soon as its gradient is there.
//
// Adam's loads, root and division run beside the products of the next tile, which hide
// them: a second pass over weights and moments (six times the weights' bytes) would
// cost about as much as the product itself.
#pragma once

#include "cpu/gemm.h"
#include "cpu/to_pairs.h"

namespace fedclip {

template <class V>
struct AdamRegs {
    typename V::Reg rate, one_beta1, one_beta2, eps, weight_decay;

    INLINE explicit AdamRegs(const Adam& a)
        : rate(V::set(a.rate)),
          one_beta1(V::set(a.one_beta1)),
          one_beta2(V::set(a.one_beta2)),
          eps(V::set(a.eps)),
          weight_decay(V::set(a.weight_decay)) {}
};

// One vector of parameters on its way through Adam, in two halves with a gap between.
template <class V>
struct AdamVector {
    typename V::Reg value, exp_avg, exp_avg_sq, root;

    INLINE void begin(const AdamRegs<V>& adam, typename V::Reg grad) {
        grad = V::fma(adam.weight_decay, value, grad);
        exp_avg_sq = V::fma(adam.one_beta2, V::fms(grad, grad, exp_avg_sq), exp_avg_sq);
        root = V::sqrt(exp_avg_sq);
        exp_avg = V::fma(adam.one_beta1, V::sub(grad, exp_avg), exp_avg);
    }
    INLINE void end(const AdamRegs<V>& adam) {
        const typename V::Reg denominator = V::add(root, adam.eps);
        value = V::fnma(adam.rate, V::div(exp_avg, denominator), value);
    }
};

template <class V>
INLINE void adam_vector(const AdamRegs<V>& adam, const Parameter& p, std::int64_t at,
                        typename V::Reg grad, int count) {
    AdamVector<V> a;
    a.value = V::load_first(p.value + at, count);
    a.exp_avg = V::load_first(p.exp_avg + at, count);
    a.exp_avg_sq = V::load_first(p.exp_avg_sq + at, count);
    a.begin(adam, grad);
    a.end(adam);
    V::store_first(p.value + at, a.value, count);
    V::store_first(p.exp_avg + at, a.exp_avg, count);
    V::store_first(p.exp_avg_sq + at, a.exp_avg_sq, count);
}

// A tile of a weight matrix whose gradient is there, (rows, panel width) in `grad`.
struct Tile : Part {
    float* copy;  // the tile in `w2_panels`, or null
    const float* grad;
};

template <class V>
INLINE void adam_tile(const AdamRegs<V>& adam, const Parameter& p, std::int64_t dim,
                      const Tile& tile) {
    for (std::int64_t r = 0; r < tile.rows; ++r) {
        for (std::int64_t i = 0; i < tile.columns; i += V::lanes) {
            const std::int64_t at = (tile.row + r) * dim + tile.column + i;
            const int count = int(least(V::lanes, tile.columns - i));
            adam_vector<V>(adam, p, at, V::load(tile.grad + r * panel_width<V> + i),
                           count);
            if (!tile.copy) continue;
            V::store(tile.copy + r * panel_width<V> + i,
                     V::load_first(p.value + at, count));
        }
    }
}

// The gradient's products over the batch's rows from `skip` on, in the order of rows.
template <class V, int R, class T>
INLINE void add_rows(typename V::Reg (&acc)[R][2], const Batch& batch,
                     const T* d_chunks, std::int64_t row, const T* q,
                     std::int64_t q_row, std::int64_t skip) {
    constexpr std::int64_t in = numbers_in<T>;
    for (std::int64_t c = 0; c < chunk_count<V>(batch); ++c) {
        const std::int64_t width = chunk_width<V>(batch, c), first = c * panel_width<V>;
        const std::int64_t count = least(width, batch.rows - first);
        const T* a = d_chunks + (c * chunk_size<V>(batch) + row * width) / in;
        multiply<V>(acc, a + skip / in, width / in, 1, q + (first + skip) / in * q_row,
                    q_row, elements<T>(count - skip));
        skip = 0;
    }
}

// The products of the first chunk, a whole one, with Adam on `tile` in between.
template <class V, class T>
INLINE void first_rows_and_adam(typename V::Reg (&acc)[V::tile_rows][2], const T* a,
                                const T* q, const AdamRegs<V>& adam, const Parameter& p,
                                std::int64_t dim, const Tile& tile,
                                std::int64_t ahead) {
    constexpr std::int64_t width = panel_width<V>, a_row = width / numbers_in<T>;
    constexpr std::int64_t numbers = width / (2 * V::tile_rows) * 2;  // per row of Adam
    constexpr std::int64_t steps = numbers / numbers_in<T>;
    for (std::int64_t r = 0; r < V::tile_rows; ++r) {
        UNROLL for (std::int64_t v = 0; v < 2; ++v) {
            const std::int64_t lane = v * V::lanes;
            const std::int64_t middle = r * steps + (steps + 1) / 2;
            const std::int64_t k = v ? middle : r * steps;
            const std::int64_t last = v ? (r + 1) * steps : middle;
            const std::int64_t at = (tile.row + r) * dim + tile.column + lane;
            AdamVector<V> vector;
            vector.value = V::load(p.value + at);
            vector.exp_avg = V::load(p.exp_avg + at);
            vector.exp_avg_sq = V::load(p.exp_avg_sq + at);
            vector.begin(adam, V::load(tile.grad + r * width + lane));
            V::store(p.exp_avg + at, vector.exp_avg);
            V::store(p.exp_avg_sq + at, vector.exp_avg_sq);
            if (k < last) multiply_step<V>(acc, a + k, a_row, q + k * width);
            const std::int64_t next = ahead + r * dim + lane;
            prefetch(p.value + next);
            prefetch(p.exp_avg + next);
            prefetch(p.exp_avg_sq + next);
            vector.end(adam);
            V::store(p.value + at, vector.value);
            if (tile.copy) V::store(tile.copy + r * width + lane, vector.value);
            UNROLL for (std::int64_t s = k + 1; s < last; ++s) {
                multiply_step<V>(acc, a + s, a_row, q + s * width);
            }
        }
    }
}

// Adam on `tile` alone, with no product beside it.
template <class V, class T>
INLINE void finish_tile(const Batch& batch, int l, const AdamRegs<V>& adam,
                        const Tile& tile) {
    adam_tile<V>(adam, batch.layer[l].weight, batch.dim, tile);
    if constexpr (numbers_in<T> == 2) pair_weights<V, false>(batch, l, tile);
}

// Rows begin..end of layer `l`: q are its inputs in panels, d the gradient of its
// outputs in chunks.
template <class V, class T>
INLINE void update_weight(const Batch& batch, int l, const T* d_chunks,
                          const PanelsOf<T>& q, std::int64_t begin, std::int64_t end) {
    constexpr std::int64_t width = panel_width<V>;
    constexpr std::int64_t overlapped = width / (2 * V::tile_rows) * (2 * V::tile_rows);
    const AdamRegs<V> adam(batch.adam);
    const std::int64_t dim = batch.dim;
    float* copy = l == 1 && numbers_in<T> == 1 ? batch.w2_panels : nullptr;
    alignas(64) float grads[2][V::tile_rows * panel_width<V>];
    int current = 0;
    Tile waiting{};
    for_tiles<V::tile_rows>(begin, end, [&](auto rows, std::int64_t row) {
        constexpr int R = decltype(rows)::value;
        for (std::int64_t i = 0; i < dim; i += width) {
            const T* panel = q.data + i / width * q.panel;
            typename V::Reg acc[R][2];
            fill<V>(acc, V::zero());
            bool overlap = false;
            if constexpr (R == V::tile_rows) {
                overlap = batch.rows >= width && waiting.rows == R &&
                          waiting.columns == width;
                if (overlap) {
                    first_rows_and_adam<V>(acc, d_chunks + row * width / numbers_in<T>,
                                           panel, adam, batch.layer[l].weight, dim,
                                           waiting, row * dim + i);
                    if constexpr (numbers_in<T> == 2) {
                        pair_weights<V, true>(batch, l, waiting);
                    }
                }
            }
            if (!overlap && waiting.rows) finish_tile<V, T>(batch, l, adam, waiting);
            add_rows<V>(acc, batch, d_chunks, row, panel, q.row,
                        overlap ? overlapped : 0);
            float* grad = grads[current];
            UNROLL for (int r = 0; r < R; ++r) {
                V::store(grad + r * width, acc[r][0]);
                V::store(grad + r * width + V::lanes, acc[r][1]);
            }
            waiting = {{row, i, R, least(width, dim - i)},
                       copy ? copy + (i / width * dim + row) * width : nullptr,
                       grad};
            current ^= 1;
        }
    });
    if (waiting.rows) finish_tile<V, T>(batch, l, adam, waiting);
}

// out[o - begin] = sum over rows of d: the gradient of a layer's bias.
template <class V>
INLINE void sum_rows(const Batch& batch, const float* d_chunks, std::int64_t begin,
                     std::int64_t end, float* out) {
    for (std::int64_t o = begin; o < end; ++o) {
        typename V::Reg sum = V::zero();
        for (std::int64_t c = 0; c < chunk_count<V>(batch); ++c) {
            const std::int64_t width = chunk_width<V>(batch, c);
            const float* row = d_chunks + c * chunk_size<V>(batch) + o * width;
            for (std::int64_t v = 0; v < width; v += V::lanes) {
                sum = V::add(sum, V::load(row + v));
            }
        }
        out[o - begin] = V::sum(sum);
    }
}

template <class V, class T>
void update(const Batch& batch, std::int64_t unit) {
    constexpr std::int64_t width = panel_width<V>;
    const std::int64_t units = (batch.dim + width - 1) / width;
    const bool second = unit < units;
    const std::int64_t begin = (second ? unit : unit - units) * width;
    const std::int64_t end = least(begin + width, batch.dim);
    const Factors<T> f = factors<T>(batch);
    update_weight<V>(batch, second, second ? f.du_rows : f.da_rows,
                     second ? f.h_panels : f.x_panels, begin, end);
    alignas(64) float grad[panel_width<V>] = {};
    sum_rows<V>(batch, second ? batch.du_chunks : batch.da_chunks, begin, end, grad);
    for (std::int64_t o = begin; o < end; o += V::lanes) {
        adam_vector<V>(AdamRegs<V>(batch.adam), batch.layer[second].bias, o,
                       V::load(grad + (o - begin)), int(least(V::lanes, end - o)));
    }
}

// The backward operator: the gradients themselves, into (or added to) `value`.
template <class V>
void grad_weights(const Batch& batch, std::int64_t unit) {
    constexpr std::int64_t width = panel_width<V>;
    const std::int64_t units = (batch.dim + width - 1) / width, dim = batch.dim;
    const bool second = unit < units;
    const std::int64_t begin = (second ? unit : unit - units) * width;
    const std::int64_t end = least(begin + width, dim);
    const float* d = second ? batch.du_chunks : batch.da_chunks;
    const Panels& q = second ? batch.h_panels : batch.x_panels;
    const Layer& layer = batch.layer[second];
    for_tiles<V::tile_rows>(begin, end, [&](auto rows, std::int64_t row) {
        constexpr int R = decltype(rows)::value;
        for (std::int64_t i = 0; i < dim; i += width) {
            typename V::Reg acc[R][2];
            fill<V>(acc, V::zero());
            add_rows<V>(acc, batch, d, row, q.data + i / width * q.panel, q.row, 0);
            UNROLL for (int r = 0; r < R; ++r) {
                float* out = layer.weight.value + (row + r) * dim + i;
                UNROLL for (int v = 0; v < 2; ++v) {
                    const int n = int(least(V::lanes, dim - i - v * V::lanes));
                    if (n <= 0) continue;
                    float* to = out + v * V::lanes;
                    typename V::Reg sum = acc[r][v];
                    if (batch.accumulate) sum = V::add(sum, V::load_first(to, n));
                    V::store_first(to, sum, n);
                }
            }
        }
    });
    float grad[panel_width<V>];
    sum_rows<V>(batch, d, begin, end, grad);
    for (std::int64_t o = begin; o < end; ++o) {
        float* to = layer.bias.value + o;
        *to = batch.accumulate ? *to + grad[o - begin] : grad[o - begin];
    }
}

}  // namespace fedclip
