// Register-tiled products.  Rows of a tile come as broadcasts, its columns as vectors.
#pragma once

#include "cpu/inline.h"
#include "cpu/kernels.h"

namespace fedclip::cpu {

template <class V>
constexpr std::int64_t panel_width = 2 * V::lanes;

// Whether weights and moments are so large that they are to be fetched before they are
// needed; those of less come as fast by the processor's own fetching.
FEDCLIP_INLINE bool fetches_ahead(const Batch& batch) { return batch.dim > 640; }

FEDCLIP_INLINE std::int64_t least(std::int64_t a, std::int64_t b) {
    return a < b ? a : b;
}

template <class V>
FEDCLIP_INLINE std::int64_t chunk_count(const Batch& batch) {
    return (batch.rows + panel_width<V> - 1) / panel_width<V>;
}

template <class V>
FEDCLIP_INLINE std::int64_t chunk_width(const Batch& batch, std::int64_t chunk) {
    const std::int64_t rest = batch.rows - chunk * panel_width<V>;
    return rest > V::lanes ? panel_width<V> : V::lanes;
}

// Features padded to whole panels: the rows of a chunk.
template <class V>
FEDCLIP_INLINE std::int64_t padded_dim(const Batch& batch) {
    return (batch.dim + panel_width<V> - 1) / panel_width<V> * panel_width<V>;
}

template <class V>
FEDCLIP_INLINE std::int64_t chunk_size(const Batch& batch) {
    return padded_dim<V>(batch) * panel_width<V>;
}

// `lanes` rows of the batch: where they stand in a chunk.
struct Group {
    std::int64_t chunk, width, lane;  // their lanes of the chunk start at `lane`
    int rows;                         // the others are padding
};

template <class V>
FEDCLIP_INLINE Group group_of(const Batch& batch, std::int64_t unit) {
    const std::int64_t chunk = unit / 2;
    return {chunk, chunk_width<V>(batch, chunk), unit % 2 * V::lanes,
            int(least(V::lanes, batch.rows - unit * V::lanes))};
}

// The factors of the products as T.
template <class T>
FEDCLIP_INLINE Factors<T> factors(const Batch& batch) {
    if constexpr (numbers_in<T> == 2) {
        return batch.pairs;
    } else {
        const Layer* layer = batch.layer;
        return {batch.x_chunks,  batch.h_chunks,
                batch.du_chunks, batch.du_chunks,
                batch.da_chunks, batch.x_panels,
                batch.h_panels,  {layer[0].weight.before, layer[1].weight.before},
                batch.dim,       batch.w2_panels};
    }
}

template <class V, int R, int N>
FEDCLIP_INLINE void fill(typename V::Reg (&acc)[R][N], typename V::Reg value) {
    FEDCLIP_UNROLL for (int r = 0; r < R; ++r) {
        FEDCLIP_UNROLL for (int v = 0; v < N; ++v) acc[r][v] = value;
    }
}

// acc[r] += a[r * a_row] * b: one step of the product.
template <class V, int R, int N, class T>
FEDCLIP_INLINE void multiply_step(typename V::Reg (&acc)[R][N], const T* a,
                                  std::int64_t a_row, const T* b) {
    decltype(V::load(b)) columns[N];
    FEDCLIP_UNROLL for (int v = 0; v < N; ++v) columns[v] = V::load(b + v * V::lanes);
    FEDCLIP_UNROLL for (int r = 0; r < R; ++r) {
        const auto row = V::set(a[r * a_row]);
        FEDCLIP_UNROLL for (int v = 0; v < N; ++v) acc[r][v] =
            V::fma(row, columns[v], acc[r][v]);
    }
}

// acc[r] += sum_k a[r * a_row + k * a_step] * b[k * b_row], in the order of k.
template <class V, int R, int N, class T>
FEDCLIP_INLINE void multiply(typename V::Reg (&acc)[R][N], const T* a,
                             std::int64_t a_row, std::int64_t a_step, const T* b,
                             std::int64_t b_row, std::int64_t depth) {
    for (std::int64_t k = 0; k < depth; ++k) {
        multiply_step<V>(acc, a + k * a_step, a_row, b + k * b_row);
    }
}

// The same for a_step = 1, fetching the R rows below these: the next tile's.
template <class V, int R, int N, class T>
FEDCLIP_INLINE void multiply_ahead(typename V::Reg (&acc)[R][N], const T* a,
                                   std::int64_t a_row, const T* b, std::int64_t b_row,
                                   std::int64_t depth) {
    std::int64_t k = 0;
    for (; k + kLine <= depth; k += kLine) {
        FEDCLIP_UNROLL for (int r = 0; r < R; ++r) prefetch(a + (R + r) * a_row + k);
        multiply<V>(acc, a + k, a_row, 1, b + k * b_row, b_row, kLine);
    }
    multiply<V>(acc, a + k, a_row, 1, b + k * b_row, b_row, depth - k);
}

// Calls part(sum, k, count) for stretches of the depth and adds their sums to acc: the
// rounding error of a sum grows with its length, and the logit scale amplifies it.
template <class V, std::int64_t Stretch, int R, int N, class Part>
FEDCLIP_INLINE void add_stretches(typename V::Reg (&acc)[R][N], std::int64_t depth,
                                  const Part& part) {
    for (std::int64_t k = 0; k < depth; k += Stretch) {
        typename V::Reg sum[R][N];
        fill<V>(sum, V::zero());
        part(sum, k, least(Stretch, depth - k));
        FEDCLIP_UNROLL for (int r = 0; r < R; ++r) {
            FEDCLIP_UNROLL for (int v = 0; v < N; ++v) acc[r][v] =
                V::add(acc[r][v], sum[r][v]);
        }
    }
}

constexpr std::int64_t kStretch = 128;  // numbers

// Where the broadcast factors of rows `row`.. stand.
template <class T>
struct ByRow {  // a row-major matrix
    const T* data;
    std::int64_t stride;
    template <class V, int R, int N>
    FEDCLIP_INLINE void run(typename V::Reg (&acc)[R][N], std::int64_t row, const T* b,
                            std::int64_t b_row, std::int64_t depth, bool ahead) const {
        const T* a = data + row * stride;
        add_stretches<V, kStretch / numbers_in<T>>(
            acc, depth, [&](auto& sum, std::int64_t k, std::int64_t count) {
                if (ahead) {
                    multiply_ahead<V>(sum, a + k, stride, b + k * b_row, b_row, count);
                } else {
                    multiply<V>(sum, a + k, stride, 1, b + k * b_row, b_row, count);
                }
            });
    }
};

template <class T>
struct ByColumn {  // the transpose of a row-major matrix, from its row `first` on
    const T* data;
    std::int64_t stride, first;
    const T* next;  // as much of what is needed after this, or null
    template <class V, int R, int N>
    FEDCLIP_INLINE void run(typename V::Reg (&acc)[R][N], std::int64_t row, const T* b,
                            std::int64_t b_row, std::int64_t depth, bool ahead) const {
        const T* a = data + (row - first);
        const bool fetch = next && ahead && row == first;
        add_stretches<V, kStretch / numbers_in<T>>(
            acc, depth, [&](auto& sum, std::int64_t k, std::int64_t count) {
                if (!fetch) {
                    multiply<V>(sum, a + k * stride, 1, stride, b + k * b_row, b_row,
                                count);
                    return;
                }
                for (const std::int64_t end = k + count; k < end; ++k) {
                    for (std::int64_t i = 0; i < stride; i += kLine) {
                        prefetch_outer(next + k * stride + i);
                    }
                    multiply_step<V>(sum, a + k * stride, 1, b + k * b_row);
                }
            });
    }
};

template <int R>
struct Rows {
    static constexpr int value = R;
};

// Tiles of R rows, then of fewer: calls tile(Rows<R>, row).
template <int R, class F>
FEDCLIP_INLINE void for_tiles(std::int64_t begin, std::int64_t end, const F& tile) {
    for (; begin + R <= end; begin += R) tile(Rows<R>{}, begin);
    if constexpr (R > 1) for_tiles<(R > 4 ? 4 : R / 2)>(begin, end, tile);
}

template <class V, int R, int N, class A, class T, class Sink>
FEDCLIP_INLINE void product_tile(const A& a, const T* b, std::int64_t b_row,
                                 std::int64_t depth, std::int64_t row, bool ahead,
                                 const Sink& sink, std::int64_t chunk) {
    typename V::Reg acc[R][N];
    sink.template start<V>(acc, row);
    a.template run<V>(acc, row, b, b_row, depth, ahead);
    sink.template finish<V>(acc, row, chunk, b_row);
}

// sink(a[begin..end, :] * every chunk of b): `b` is `depth` elements deep, chunks lie
// `b_chunk` elements apart.  The tile of `a` stays in L1 while the chunks pass.
template <class V, class A, class T, class Sink>
FEDCLIP_INLINE void product(const Batch& batch, const A& a, const T* b,
                            std::int64_t b_chunk, std::int64_t depth,
                            std::int64_t begin, std::int64_t end, const Sink& sink) {
    for_tiles<V::tile_rows>(begin, end, [&](auto rows, std::int64_t row) {
        constexpr int R = decltype(rows)::value;
        for (std::int64_t c = 0; c < chunk_count<V>(batch); ++c) {
            const T* chunk = b + c * b_chunk;
            if (chunk_width<V>(batch, c) == panel_width<V>) {
                product_tile<V, R, 2>(a, chunk, panel_width<V>, depth, row, c == 0,
                                      sink, c);
            } else {
                product_tile<V, R, 1>(a, chunk, V::lanes, depth, row, c == 0, sink, c);
            }
        }
    });
}

}  // namespace fedclip::cpu
