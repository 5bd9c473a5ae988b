// The in-batch contrastive loss and its gradient in the logits L = s z t' (B, P).
//
// A row's text depends on its class alone, so the B x B logits of the paper reduce to
// B x P with class counts n_c: the row log-sum-exp is log sum_c n_c e^L, the column one
// is per class, and <z, dz> = sum_c dL L.
#pragma once

#include "cpu/forward.h"

namespace fedclip::cpu {

// Logits of R classes and one vector of rows, `width` apart.
template <class V, int R>
FEDCLIP_INLINE void logit_tile(const Batch& batch, const float* z, std::int64_t row,
                               std::int64_t width, float* out) {
    typename V::Reg acc[R][1];
    fill<V>(acc, V::zero());
    const float* text = batch.text + row * batch.dim;
    add_stretches<V, kStretch / 4>(
        acc, batch.dim, [&](auto& sum, std::int64_t k, std::int64_t count) {
            multiply<V>(sum, text + k, batch.dim, 1, z + k * width, width, count);
        });
    const typename V::Reg scale = V::set(batch.logit_scale);
    FEDCLIP_UNROLL for (int r = 0; r < R; ++r) {
        V::store(out + (row + r) * width, V::mul(acc[r][0], scale));
    }
}

template <class V>
FEDCLIP_INLINE std::int64_t logit_chunk(const Batch& batch) {
    return batch.classes * panel_width<V>;
}

template <class V>
void gate_and_logits(const Batch& batch, std::int64_t unit) {
    const Group group = group_of<V>(batch, unit);
    gate_group<V>(batch, group);
    const float* z = batch.z_chunks + group.chunk * chunk_size<V>(batch) + group.lane;
    float* out = batch.logits + group.chunk * logit_chunk<V>(batch) + group.lane;
    for_tiles<V::tile_rows>(0, batch.classes, [&](auto rows, std::int64_t row) {
        logit_tile<V, decltype(rows)::value>(batch, z, row, group.width, out);
    });
}

// Column log-sum-exps; e^(L - max) of a class goes to `column_exp`.
template <class V>
FEDCLIP_INLINE void column_pass(const Batch& batch, std::int64_t groups) {
    using Reg = typename V::Reg;
    const Reg nothing = V::set(-__builtin_inff());
    for (std::int64_t c = 0; c < batch.classes; ++c) {
        Reg best = nothing;
        for (std::int64_t u = 0; u < groups; ++u) {
            const Group g = group_of<V>(batch, u);
            const std::int64_t at =
                g.chunk * logit_chunk<V>(batch) + c * g.width + g.lane;
            best = V::max(best,
                          V::keep_first(V::load(batch.logits + at), g.rows, nothing));
        }
        const float top = V::largest(best);
        Reg sum = V::zero();
        for (std::int64_t u = 0; u < groups; ++u) {
            const Group g = group_of<V>(batch, u);
            const std::int64_t at =
                g.chunk * logit_chunk<V>(batch) + c * g.width + g.lane;
            const Reg e = exp<V>(V::sub(V::load(batch.logits + at), V::set(top)));
            V::store(batch.column_exp + at, e);
            sum = V::add(sum, V::keep_first(e, g.rows, V::zero()));
        }
        const float total = V::sum(sum);
        batch.column_lse[c] = top + __builtin_logf(total);
        batch.column_lse[batch.classes + c] = batch.count[c] / total;
    }
}

// Logits of one vector of rows -> their gradient in place, and <z, dz>; returns the
// rows' part of the loss times 2 B.
template <class V>
FEDCLIP_INLINE double row_pass(const Batch& batch, std::int64_t unit) {
    using Reg = typename V::Reg;
    const Group g = group_of<V>(batch, unit);
    const std::int64_t start = g.chunk * logit_chunk<V>(batch) + g.lane;
    float* logits = batch.logits + start;
    const float* column_exp = batch.column_exp + start;
    const float* column_share = batch.column_lse + batch.classes;
    const std::int64_t* column = batch.column + unit * V::lanes;
    float own[V::lanes] = {}, lse[V::lanes], dot[V::lanes];
    for (int j = 0; j < g.rows; ++j) own[j] = logits[column[j] * g.width + j];

    Reg top = V::set(-__builtin_inff());
    for (std::int64_t c = 0; c < batch.classes; ++c) {
        top = V::max(top, V::load(logits + c * g.width));
    }
    Reg sum = V::zero();
    for (std::int64_t c = 0; c < batch.classes; ++c) {
        const Reg e = exp<V>(V::sub(V::load(logits + c * g.width), top));
        sum = V::fma(V::set(batch.count[c]), e, sum);
    }
    const Reg inverse = V::div(V::set(1.f), sum);
    const float mean = 0.5f / float(batch.rows);
    const Reg scale = V::set(batch.logit_scale * mean);
    Reg dots = V::zero();
    for (std::int64_t c = 0; c < batch.classes; ++c) {
        const Reg logit = V::load(logits + c * g.width);
        const Reg e = exp<V>(V::sub(logit, top));
        const Reg by_row = V::mul(V::mul(V::set(batch.count[c]), e), inverse);
        const Reg grad =
            V::fma(V::load(column_exp + c * g.width), V::set(column_share[c]), by_row);
        dots = V::fma(grad, logit, dots);
        V::store(logits + c * g.width,
                 V::keep_first(V::mul(grad, scale), g.rows, V::zero()));
    }
    V::store(lse, top);
    V::store(dot, dots);
    float sums[V::lanes];
    V::store(sums, sum);
    double loss = 0;
    for (int j = 0; j < V::lanes; ++j) {
        float* out = batch.dot + unit * V::lanes + j;
        *out = j < g.rows ? (dot[j] - 2 * own[j]) * mean : 0;
        if (j >= g.rows) continue;
        logits[column[j] * g.width + j] -= 2 * batch.logit_scale * mean;
        loss += double(lse[j]) + __builtin_logf(sums[j]) - own[j];
        loss += double(batch.column_lse[column[j]]) - own[j];
    }
    return loss;
}

template <class V>
void loss(const Batch& batch, std::int64_t) {
    const std::int64_t groups = (batch.rows + V::lanes - 1) / V::lanes;
    column_pass<V>(batch, groups);
    double total = 0;
    for (std::int64_t u = 0; u < groups; ++u) total += row_pass<V>(batch, u);
    *batch.loss = float(total / double(2 * batch.rows));
}

}  // namespace fedclip::cpu
