// Weight gradients dW = d' q, and Adam as soon as they are there: a pass of its own
// over weights and moments (six times the weights' bytes) would cost about as much as
// the products.
//
// With AVX-512 Adam's loads, root and division run beside the products of the next
// tile, which hide them.  With 16 registers the two are in each other's way: there Adam
// follows the products of a few rows, along them, so that memory comes in long runs.
#pragma once

#include "cpu/adam.h"
#include "cpu/to_pairs.h"

namespace fedclip::cpu {

// A tile of a weight matrix whose gradient is there, (rows, panel width) in `grad`.
struct Tile : Part {
    float* copy;  // the tile in `w2_panels`, or null
    const float* grad;
};

template <class V>
FEDCLIP_INLINE void adam_tile(const AdamRegs<V>& adam, const Parameter& p,
                              std::int64_t dim, const Tile& tile) {
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
FEDCLIP_INLINE void add_rows(typename V::Reg (&acc)[R][2], const Batch& batch,
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
FEDCLIP_INLINE void first_rows_and_adam(typename V::Reg (&acc)[V::tile_rows][2],
                                        const T* a, const T* q, const AdamRegs<V>& adam,
                                        const Parameter& p, std::int64_t dim,
                                        const Tile& tile, std::int64_t ahead) {
    constexpr std::int64_t width = panel_width<V>, a_row = width / numbers_in<T>;
    constexpr std::int64_t numbers = width / (2 * V::tile_rows) * 2;  // per row of Adam
    constexpr std::int64_t steps = numbers / numbers_in<T>;
    for (std::int64_t r = 0; r < V::tile_rows; ++r) {
        FEDCLIP_UNROLL for (std::int64_t v = 0; v < 2; ++v) {
            const std::int64_t lane = v * V::lanes;
            const std::int64_t middle = r * steps + (steps + 1) / 2;
            const std::int64_t k = v ? middle : r * steps;
            const std::int64_t last = v ? (r + 1) * steps : middle;
            const std::int64_t at = (tile.row + r) * dim + tile.column + lane;
            AdamVector<V> vector;
            vector.load(adam, p, at);
            vector.begin(adam, V::load(tile.grad + r * width + lane));
            vector.store_moments(adam, p, at);
            if (k < last) multiply_step<V>(acc, a + k, a_row, q + k * width);
            const std::int64_t next = ahead + r * dim + lane;
            prefetch(p.before + next);
            prefetch(p.exp_avg + next);
            prefetch(p.exp_avg_sq + next);
            vector.end(adam);
            V::store(p.value + at, vector.value);
            if (tile.copy) V::store(tile.copy + r * width + lane, vector.value);
            FEDCLIP_UNROLL for (std::int64_t s = k + 1; s < last; ++s) {
                multiply_step<V>(acc, a + s, a_row, q + s * width);
            }
        }
    }
}

// Adam on `tile` alone, with no product beside it.
template <class V, class T>
FEDCLIP_INLINE void finish_tile(const Batch& batch, int l, const AdamRegs<V>& adam,
                                const Tile& tile) {
    adam_tile<V>(adam, batch.layer[l].weight, batch.dim, tile);
    if constexpr (numbers_in<T> == 2) {
        if (adam.last) return;
        pair_weights<V, false>(batch, l, batch.layer[l].weight.value, tile);
    }
}

// Rows begin..end of layer `l`: q are its inputs in panels, d the gradient of its
// outputs in chunks.  Adam on a tile beside the products of the next.
template <class V, class T>
FEDCLIP_INLINE void update_tiles(const Batch& batch, int l, const T* d_chunks,
                                 const PanelsOf<T>& q, std::int64_t begin,
                                 std::int64_t end) {
    constexpr std::int64_t width = panel_width<V>;
    constexpr std::int64_t overlapped = width / (2 * V::tile_rows) * (2 * V::tile_rows);
    const AdamRegs<V> adam(batch.adam);
    const std::int64_t dim = batch.dim;
    const bool copies = l == 1 && numbers_in<T> == 1 && !batch.adam.last;
    float* copy = copies ? batch.w2_panels : nullptr;
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
                        if (!batch.adam.last) {
                            pair_weights<V, true>(batch, l, batch.layer[l].weight.value,
                                                  waiting);
                        }
                    }
                }
            }
            if (!overlap && waiting.rows) finish_tile<V, T>(batch, l, adam, waiting);
            add_rows<V>(acc, batch, d_chunks, row, panel, q.row,
                        overlap ? overlapped : 0);
            float* grad = grads[current];
            FEDCLIP_UNROLL for (int r = 0; r < R; ++r) {
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

// R rows and columns left..right of a weight whose Adam step is done, into the other
// forms that products read.
template <class V, int R, class T>
FEDCLIP_INLINE void copy_weights(const Batch& batch, int l, std::int64_t row,
                                 std::int64_t left, std::int64_t right) {
    constexpr std::int64_t width = panel_width<V>;
    if constexpr (numbers_in<T> == 2) {
        for (std::int64_t i = left; i < right; i += width) {
            const Part part{row, i, R, least(width, right - i)};
            pair_weights<V, false>(batch, l, batch.layer[l].weight.value, part);
        }
    } else if (l == 1) {
        for (std::int64_t i = left; i < right; i += V::lanes) {
            const float* from = batch.layer[l].weight.value + row * batch.dim + i;
            float* to =
                batch.w2_panels + (i / width * batch.dim + row) * width + i % width;
            const int n = int(least(V::lanes, right - i));
            FEDCLIP_UNROLL for (int r = 0; r < R; ++r, from += batch.dim) {
                V::store(to + r * width,
                         n == V::lanes ? V::load(from) : V::load_first(from, n));
            }
        }
    }
}

// Fetches what Adam is about to read and write of R rows of a panel's width.
template <class V, int R, class T>
FEDCLIP_INLINE void fetch_tile(const Batch& batch, int l, std::int64_t row,
                               std::int64_t column) {
    const Parameter& p = batch.layer[l].weight;
    const bool moments = !batch.adam.fresh || !batch.adam.last;
    const bool copies = l == 1 && numbers_in<T> == 1 && !batch.adam.last;
    float* copy = batch.w2_panels + column * batch.dim + row * panel_width<V>;
    FEDCLIP_UNROLL for (int r = 0; r < R; ++r) {
        const std::int64_t at = (row + r) * batch.dim + column;
        prefetch_outer(p.before + at);
        if (moments) {
            prefetch_outer(p.exp_avg + at);
            prefetch_outer(p.exp_avg_sq + at);
        }
        if (copies) prefetch_to_write(copy + r * panel_width<V>);
    }
}

// The same in rows: the products of a tile's rows, then Adam along each row.
template <class V, class T>
FEDCLIP_INLINE void update_rows(const Batch& batch, int l, const T* d_chunks,
                                const PanelsOf<T>& q, std::int64_t begin,
                                std::int64_t end) {
    constexpr std::int64_t width = panel_width<V>, most = 1024;  // columns; 24 KB of L1
    const AdamRegs<V> adam(batch.adam);
    const std::int64_t dim = batch.dim;
    const bool ahead = fetches_ahead(batch);
    alignas(64) float grads[V::tile_rows * most];
    for_tiles<V::tile_rows>(begin, end, [&](auto rows, std::int64_t row) {
        constexpr int R = decltype(rows)::value;
        for (std::int64_t left = 0; left < dim; left += most) {
            const std::int64_t right = least(left + most, dim);
            for (std::int64_t i = left; i < right; i += width) {
                if (ahead) fetch_tile<V, R, T>(batch, l, row, i);
                typename V::Reg acc[R][2];
                fill<V>(acc, V::zero());
                add_rows<V>(acc, batch, d_chunks, row, q.data + i / width * q.panel,
                            q.row, 0);
                float* grad = grads + i - left;
                FEDCLIP_UNROLL for (int r = 0; r < R; ++r) {
                    V::store(grad + r * most, acc[r][0]);
                    V::store(grad + r * most + V::lanes, acc[r][1]);
                }
            }
            for (int r = 0; r < R; ++r) {
                adam_run<V>(adam, batch.layer[l].weight, (row + r) * dim + left,
                            grads + r * most, right - left);
            }
            if (!batch.adam.last) copy_weights<V, R, T>(batch, l, row, left, right);
        }
    });
}

// out[o - begin] = sum over rows of d: the gradient of a layer's bias.
template <class V>
FEDCLIP_INLINE void sum_rows(const Batch& batch, const float* d_chunks,
                             std::int64_t begin, std::int64_t end, float* out) {
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
    const T* d = second ? f.du_rows : f.da_rows;
    const PanelsOf<T>& q = second ? f.h_panels : f.x_panels;
    if constexpr (V::adam_beside_products) {
        update_tiles<V>(batch, second, d, q, begin, end);
    } else {
        update_rows<V>(batch, second, d, q, begin, end);
    }
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
            FEDCLIP_UNROLL for (int r = 0; r < R; ++r) {
                float* out = layer.weight.value + (row + r) * dim + i;
                FEDCLIP_UNROLL for (int v = 0; v < 2; ++v) {
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

}  // namespace fedclip::cpu
