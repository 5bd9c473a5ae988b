// The adapter's forward: h = tanh(w1 x + b1), z = normalize(exp(w2 h + b2 - max) x).
#pragma once

#include "cpu/gemm.h"
#include "cpu/to_pairs.h"
#include "cpu/vec_math.h"

namespace fedclip::cpu {

// Copies `lanes` rows into chunks and, where `panels` has data, into panels.
template <class V>
FEDCLIP_INLINE void load_group(const Batch& batch, std::int64_t unit,
                               const float* const* rows, const Panels& panels,
                               float* chunks) {
    constexpr std::int64_t lanes = V::lanes;
    const Group group = group_of<V>(batch, unit);
    float* out = chunks ? chunks + group.chunk * chunk_size<V>(batch) + group.lane : 0;
    alignas(64) float stage[V::lanes * V::lanes];
    for (std::int64_t i = 0; i < batch.dim; i += lanes) {
        const int columns = int(least(lanes, batch.dim - i));
        float* to = stage;
        std::int64_t to_row = lanes;
        if (panels.data) {
            to = panels.data + i / panel_width<V> * panels.panel +
                 unit * lanes * panels.row + i % panel_width<V>;
            to_row = panels.row;
        }
        for (int j = 0; j < group.rows; ++j) {
            const float* from = rows[j] + i;
            const bool whole = columns == lanes;
            V::store(to + j * to_row,
                     whole ? V::load(from) : V::load_first(from, columns));
        }
        for (int j = group.rows; j < lanes; ++j) V::store(to + j * to_row, V::zero());
        if (out) V::transpose(to, to_row, out + i * group.width, group.width);
    }
}

template <class V, class T>
void load(const Batch& batch, std::int64_t unit) {
    const float* rows[V::lanes] = {};
    const std::int64_t first = unit * V::lanes;
    for (std::int64_t j = 0; j < V::lanes && first + j < batch.rows; ++j) {
        const std::int64_t b = first + j;
        rows[j] = batch.x + (batch.index ? batch.index[b] : b) * batch.x_row;
        if (b >= batch.next_rows) continue;
        const float* next = batch.x + batch.next[b] * batch.x_row;
        for (std::int64_t i = 0; i < batch.dim; i += 16) prefetch_outer(next + i);
    }
    load_group<V>(batch, unit, rows, batch.x_panels, batch.x_chunks);
    if constexpr (numbers_in<T> == 2) {
        const Group group = group_of<V>(batch, unit);
        pair_features<V>(batch, group, batch.x_chunks, batch.pairs.x, 0, batch.dim);
        for (std::int64_t p = 0; p * panel_width<V> < batch.dim; ++p) {
            pair_panel<V>(batch, unit, p, batch.x_panels, batch.pairs.x_panels);
        }
    }
}

// One vector of rows and up to `lanes` features of a chunk, written row by row.
template <class V>
FEDCLIP_INLINE void store_tile(const float* from, std::int64_t width, float* to,
                               std::int64_t to_row, int rows, int columns) {
    if (rows == V::lanes && columns == V::lanes) {
        V::transpose(from, width, to, to_row);
        return;
    }
    alignas(64) float stage[V::lanes * V::lanes];
    V::transpose(from, width, stage, V::lanes);
    for (int j = 0; j < rows; ++j) {
        V::store_first(to + j * to_row, V::load(stage + j * V::lanes), columns);
    }
}

// Writes features begin..end of one vector of rows of `chunks` into panels.
template <class V>
FEDCLIP_INLINE void store_group(const Batch& batch, std::int64_t unit,
                                const float* chunks, std::int64_t begin,
                                std::int64_t end, const Panels& panels) {
    const Group group = group_of<V>(batch, unit);
    const float* from = chunks + group.chunk * chunk_size<V>(batch) + group.lane;
    float* to = panels.data + unit * V::lanes * panels.row;
    for (std::int64_t i = begin; i < end; i += V::lanes) {
        float* tile = to + i / panel_width<V> * panels.panel + i % panel_width<V>;
        store_tile<V>(from + i * group.width, group.width, tile, panels.row, group.rows,
                      int(least(V::lanes, end - i)));
    }
}

template <bool Tanh>
struct Activation {
    const Batch& batch;
    const float* bias;
    float* chunks;

    template <class V, int R, int N>
    FEDCLIP_INLINE void start(typename V::Reg (&acc)[R][N], std::int64_t row) const {
        FEDCLIP_UNROLL for (int r = 0; r < R; ++r) {
            FEDCLIP_UNROLL for (int v = 0; v < N; ++v) acc[r][v] =
                V::set(bias[row + r]);
        }
    }
    template <class V, int R, int N>
    FEDCLIP_INLINE void finish(typename V::Reg (&acc)[R][N], std::int64_t row,
                               std::int64_t chunk, std::int64_t width) const {
        float* out = chunks + chunk * chunk_size<V>(batch) + row * width;
        FEDCLIP_UNROLL for (int r = 0; r < R; ++r) {
            FEDCLIP_UNROLL for (int v = 0; v < N; ++v) {
                const typename V::Reg y = Tanh ? tanh<V>(acc[r][v]) : acc[r][v];
                V::store(out + r * width + v * V::lanes, y);
            }
        }
    }
};

// Layer `l`: chunks of T, `in`, to chunks of float, `out`.
template <class V, bool Tanh, class T>
FEDCLIP_INLINE void layer(const Batch& batch, int l, const T* in, float* out,
                          std::int64_t begin, std::int64_t end) {
    const Factors<T> f = factors<T>(batch);
    const Activation<Tanh> activation{batch, batch.layer[l].bias.before, out};
    product<V>(batch, ByRow<T>{f.weight[l], f.weight_row}, in,
               chunk_size<V>(batch) / numbers_in<T>, elements<T>(batch.dim), begin, end,
               activation);
}

template <class V, class T>
void hidden(const Batch& batch, std::int64_t unit) {
    const std::int64_t begin = unit * panel_width<V>;
    const std::int64_t end = least(begin + panel_width<V>, batch.dim);
    layer<V, true>(batch, 0, factors<T>(batch).x, batch.h_chunks, begin, end);
    for (std::int64_t g = 0; g * V::lanes < batch.rows; ++g) {
        store_group<V>(batch, g, batch.h_chunks, begin, end, batch.h_panels);
        if constexpr (numbers_in<T> == 2) {
            pair_features<V>(batch, group_of<V>(batch, g), batch.h_chunks,
                             batch.pairs.h, begin, end);
            pair_panel<V>(batch, g, unit, batch.h_panels, batch.pairs.h_panels);
        }
    }
}

template <class V, class T>
void scores(const Batch& batch, std::int64_t unit) {
    const std::int64_t begin = unit * panel_width<V>;
    const std::int64_t end = least(begin + panel_width<V>, batch.dim);
    layer<V, false>(batch, 1, factors<T>(batch).h, batch.z_chunks, begin, end);
}

constexpr float kNormFloor = 1e-12f;  // a feature row of zeros gives z = 0, not NaN

// Scores -> z, in place, for one vector of rows.
template <class V>
FEDCLIP_INLINE void gate_group(const Batch& batch, const Group& group) {
    using Reg = typename V::Reg;
    const std::int64_t start = group.chunk * chunk_size<V>(batch) + group.lane;
    float* z = batch.z_chunks + start;
    const float* x = batch.x_chunks + start;
    const std::int64_t size = batch.dim * group.width, step = 4 * group.width;
    constexpr int ways = 4;  // independent sums hide the latency
    Reg part[ways];
    FEDCLIP_UNROLL for (int w = 0; w < ways; ++w) part[w] = V::set(-__builtin_inff());
    for (std::int64_t i = 0; i < size; i += step) {
        FEDCLIP_UNROLL for (int w = 0; w < ways; ++w) {
            const std::int64_t k = i + w * group.width;
            if (k < size) part[w] = V::max(part[w], V::load(z + k));
        }
    }
    const Reg top = V::max(V::max(part[0], part[1]), V::max(part[2], part[3]));
    FEDCLIP_UNROLL for (int w = 0; w < ways; ++w) part[w] = V::zero();
    for (std::int64_t i = 0; i < size; i += step) {
        FEDCLIP_UNROLL for (int w = 0; w < ways; ++w) {
            const std::int64_t k = i + w * group.width;
            if (k >= size) continue;
            const Reg q = V::mul(exp<V>(V::sub(V::load(z + k), top)), V::load(x + k));
            part[w] = V::fma(q, q, part[w]);
            V::store(z + k, q);
        }
    }
    const Reg square = V::add(V::add(part[0], part[1]), V::add(part[2], part[3]));
    const Reg norm = V::max(V::set(kNormFloor), V::sqrt(square));
    const Reg inverse = V::div(V::set(1.f), norm);
    for (std::int64_t k = 0; k < size; k += group.width) {
        V::store(z + k, V::mul(V::load(z + k), inverse));
    }
}

template <class V>
void gate(const Batch& batch, std::int64_t unit) {
    const Group group = group_of<V>(batch, unit);
    gate_group<V>(batch, group);
    if (batch.z_panels.data) {
        store_group<V>(batch, unit, batch.z_chunks, 0, batch.dim, batch.z_panels);
    }
}

}  // namespace fedclip::cpu
