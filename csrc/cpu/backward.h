// Backward of gate and layers: du = z (dz - z <z, dz>), da = (w2' du) (1 - h^2).
#pragma once

#include "cpu/forward.h"

namespace fedclip::cpu {

// A sum that starts from zero.
struct FromZero {
    template <class V, int R, int N>
    FEDCLIP_INLINE void start(typename V::Reg (&acc)[R][N], std::int64_t) const {
        fill<V>(acc, V::zero());
    }
};

struct GradScores : FromZero {
    const Batch& batch;

    FEDCLIP_INLINE explicit GradScores(const Batch& b) : batch(b) {}
    template <class V, int R, int N>
    FEDCLIP_INLINE void finish(typename V::Reg (&acc)[R][N], std::int64_t row,
                               std::int64_t chunk, std::int64_t width) const {
        const std::int64_t at = chunk * chunk_size<V>(batch) + row * width;
        const float* dot = batch.dot + chunk * panel_width<V>;
        FEDCLIP_UNROLL for (int r = 0; r < R; ++r) {
            FEDCLIP_UNROLL for (int v = 0; v < N; ++v) {
                const std::int64_t k = at + r * width + v * V::lanes;
                const typename V::Reg z = V::load(batch.z_chunks + k);
                const typename V::Reg along = V::load(dot + v * V::lanes);
                V::store(batch.du_chunks + k, V::mul(z, V::fnma(z, along, acc[r][v])));
            }
        }
    }
};

// dz = t' dL, and from it du.
template <class V, class T>
void grad_scores(const Batch& batch, std::int64_t unit) {
    const std::int64_t begin = unit * panel_width<V>;
    const std::int64_t end = least(begin + panel_width<V>, batch.dim);
    product<V>(batch, ByColumn<float>{batch.text, batch.dim, 0, nullptr}, batch.logits,
               batch.classes * panel_width<V>, batch.classes, begin, end,
               GradScores(batch));
    if constexpr (numbers_in<T> == 2) {
        for (std::int64_t g = 0; g * V::lanes < batch.rows; ++g) {
            pair_features<V>(batch, group_of<V>(batch, g), batch.du_chunks,
                             batch.pairs.du, begin, end);
        }
        pair_rows<V>(batch, batch.du_chunks, batch.pairs.du_rows, begin, end);
    }
}

struct GradHidden : FromZero {
    const Batch& batch;

    FEDCLIP_INLINE explicit GradHidden(const Batch& b) : batch(b) {}
    template <class V, int R, int N>
    FEDCLIP_INLINE void finish(typename V::Reg (&acc)[R][N], std::int64_t row,
                               std::int64_t chunk, std::int64_t width) const {
        const std::int64_t at = chunk * chunk_size<V>(batch) + row * width;
        FEDCLIP_UNROLL for (int r = 0; r < R; ++r) {
            FEDCLIP_UNROLL for (int v = 0; v < N; ++v) {
                const std::int64_t k = at + r * width + v * V::lanes;
                typename V::Reg dh = acc[r][v];
                if (batch.dh) dh = V::add(dh, V::load(batch.da_chunks + k));
                const typename V::Reg h = V::load(batch.h_chunks + k);
                V::store(batch.da_chunks + k, V::mul(dh, V::fnma(h, h, V::set(1.f))));
            }
        }
    }
};

template <class V, class T>
void grad_hidden(const Batch& batch, std::int64_t unit) {
    const std::int64_t begin = unit * panel_width<V>;
    const std::int64_t end = least(begin + panel_width<V>, batch.dim);
    const Factors<T> f = factors<T>(batch);
    const std::int64_t depth = elements<T>(batch.dim);
    const T* panel = f.w2_panels + begin * depth;
    const T* next = fetches_ahead(batch) ? panel + depth * panel_width<V> : nullptr;
    const ByColumn<T> transposed{panel, panel_width<V>, begin, next};
    product<V>(batch, transposed, f.du, chunk_size<V>(batch) / numbers_in<T>, depth,
               begin, end, GradHidden(batch));
    if constexpr (numbers_in<T> == 2) {
        pair_rows<V>(batch, batch.da_chunks, f.da_rows, begin, end);
    }
}

// A unit's rows of the weights into the forms that the products read.
template <class V, class T>
void pack_weights(const Batch& batch, std::int64_t unit) {
    constexpr std::int64_t width = panel_width<V>;
    const std::int64_t begin = unit * width, end = least(begin + width, batch.dim);
    if constexpr (numbers_in<T> == 2) {
        for (std::int64_t i = 0; i < batch.dim; i += width) {
            const Part part{begin, i, end - begin, least(width, batch.dim - i)};
            pair_weights<V, false>(batch, 0, batch.layer[0].weight.before, part);
            pair_weights<V, false>(batch, 1, batch.layer[1].weight.before, part);
        }
        return;
    }
    for (std::int64_t o = begin; o < end; ++o) {
        const float* row = batch.layer[1].weight.before + o * batch.dim;
        for (std::int64_t i = 0; i < batch.dim; i += V::lanes) {
            const int columns = int(least(V::lanes, batch.dim - i));
            float* to =
                batch.w2_panels + (i / width * batch.dim + o) * width + i % width;
            V::store(to, columns == V::lanes ? V::load(row + i)
                                             : V::load_first(row + i, columns));
        }
    }
}

// The backward operator's inputs: x and h in panels; h, z, dz and dh in chunks.
template <class V>
void load_backward(const Batch& batch, std::int64_t unit) {
    const float* sources[5] = {batch.x, batch.h, batch.z, batch.dz, batch.dh};
    float* chunks[5] = {nullptr, batch.h_chunks, batch.z_chunks, batch.du_chunks,
                        batch.da_chunks};
    const Panels panels[5] = {batch.x_panels, batch.h_panels, {}, {}, {}};
    for (int s = 0; s < 5; ++s) {
        if (!sources[s]) continue;
        const float* rows[V::lanes] = {};
        for (std::int64_t j = 0; j < V::lanes; ++j) {
            const std::int64_t b = unit * V::lanes + j;
            if (b < batch.rows) rows[j] = sources[s] + b * batch.dim;
        }
        load_group<V>(batch, unit, rows, panels[s], chunks[s]);
    }
}

// dz -> du in place, for one vector of rows.
template <class V>
void gate_backward(const Batch& batch, std::int64_t unit) {
    using Reg = typename V::Reg;
    const Group group = group_of<V>(batch, unit);
    const std::int64_t start = group.chunk * chunk_size<V>(batch) + group.lane;
    const float* z = batch.z_chunks + start;
    float* dz = batch.du_chunks + start;
    const std::int64_t size = batch.dim * group.width;
    Reg dot = V::zero();
    for (std::int64_t k = 0; k < size; k += group.width) {
        dot = V::fma(V::load(z + k), V::load(dz + k), dot);
    }
    for (std::int64_t k = 0; k < size; k += group.width) {
        const Reg a = V::load(z + k);
        V::store(dz + k, V::mul(a, V::fnma(a, dot, V::load(dz + k))));
    }
}

}  // namespace fedclip::cpu
