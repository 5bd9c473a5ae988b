// From float32 buffers to the pairs of bfloat16 that the products read.
#pragma once

#include "cpu/gemm.h"

namespace fedclip::cpu {

// Features begin..end of one vector of rows: two features a pair.
template <class V>
FEDCLIP_INLINE void pair_features(const Batch& batch, const Group& group,
                                  const float* chunks, Pair* pairs, std::int64_t begin,
                                  std::int64_t end) {
    const std::int64_t start = group.chunk * chunk_size<V>(batch);
    const float* from = chunks + start + group.lane;
    Pair* to = pairs + start / 2 + group.lane;
    for (std::int64_t i = begin; i < end; i += 2) {
        const typename V::Reg low = V::load(from + i * group.width);
        const bool both = i + 1 < end;
        const typename V::Reg high =
            both ? V::load(from + (i + 1) * group.width) : V::zero();
        V::store(to + i / 2 * group.width, V::pair(low, high));
    }
}

// Features begin..end of all rows: two rows a pair.
template <class V>
FEDCLIP_INLINE void pair_rows(const Batch& batch, const float* chunks, Pair* pairs,
                              std::int64_t begin, std::int64_t end) {
    for (std::int64_t c = 0; c < chunk_count<V>(batch); ++c) {
        const std::int64_t width = chunk_width<V>(batch, c);
        const std::int64_t start = c * chunk_size<V>(batch);
        for (std::int64_t k = begin * width; k < end * width; k += V::lanes) {
            V::store_halves(pairs + (start + k) / 2, V::load(chunks + start + k));
        }
    }
}

// One vector of rows of one panel: two rows a pair, a missing second one is zeros.
template <class V>
FEDCLIP_INLINE void pair_panel(const Batch& batch, std::int64_t unit,
                               std::int64_t panel, const Panels& panels,
                               const PanelsOf<Pair>& pairs) {
    const std::int64_t first = unit * V::lanes;
    const std::int64_t end = least(first + V::lanes, batch.rows);
    const float* from = panels.data + panel * panels.panel;
    Pair* to = pairs.data + panel * pairs.panel;
    for (std::int64_t b = first; b < end; b += 2) {
        FEDCLIP_UNROLL for (std::int64_t v = 0; v < panel_width<V>; v += V::lanes) {
            const typename V::Reg low = V::load(from + b * panels.row + v);
            const bool both = b + 1 < end;
            const typename V::Reg high =
                both ? V::load(from + (b + 1) * panels.row + v) : V::zero();
            V::store(to + b / 2 * pairs.row + v, V::pair(low, high));
        }
    }
}

// A part of a weight matrix, at most one panel wide.
struct Part {
    std::int64_t row, column, rows, columns;
};

// Layer `l`, `weight` (D, D): its rows with two inputs a pair; of the second layer the
// panels as well, with two outputs a pair.  `part.row` is even.  Whole: tile_rows by a
// panel's width.
template <class V, bool Whole>
FEDCLIP_INLINE void pair_weights(const Batch& batch, int l, const float* weight,
                                 const Part& part) {
    constexpr std::int64_t width = panel_width<V>;
    const Factors<Pair>& pairs = batch.pairs;
    const std::int64_t rows = Whole ? V::tile_rows : part.rows;
    const std::int64_t columns = Whole ? width : part.columns;
    weight += part.row * batch.dim + part.column;
    Pair* by_row = const_cast<Pair*>(pairs.weight[l]) + part.row * pairs.weight_row +
                   part.column / 2;
    const std::int64_t depth = elements<Pair>(batch.dim);
    Pair* panel =
        pairs.w2_panels + (part.column / width * depth + part.row / 2) * width;
    const auto load = [&](std::int64_t r, std::int64_t i) {
        const float* from = weight + r * batch.dim + i;
        if constexpr (Whole) return V::load(from);
        if (r == rows) return V::zero();
        return V::load_first(from, int(least(V::lanes, columns - i)));
    };
    for (std::int64_t r = 0; r < rows; r += 2) {
        FEDCLIP_UNROLL for (std::int64_t i = 0; i < columns; i += V::lanes) {
            const typename V::Reg low = load(r, i), high = load(r + 1, i);
            Pair* to = by_row + r * pairs.weight_row + i / 2;
            V::store_halves(to, low);
            if (Whole || r + 1 < rows) V::store_halves(to + pairs.weight_row, high);
            if (l == 1) V::store(panel + r / 2 * width + i, V::pair(low, high));
        }
    }
}

}  // namespace fedclip::cpu
