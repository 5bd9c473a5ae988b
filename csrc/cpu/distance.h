// Squared lengths of tensors, read once: memory bandwidth is the ceiling.
#pragma once

#include "cpu/gemm.h"

namespace fedclip::cpu {

// sum_k of(k)^2, k < count: `of` gives V::lanes elements from k on, `one` the k-th.
// Blocks are summed in fp32 registers and the blocks in float64.
template <class V, class Of, class One>
FEDCLIP_INLINE double sum_of_squares(std::int64_t count, const Of& of, const One& one) {
    constexpr int wide = 4;
    constexpr std::int64_t block = 4096;
    double total = 0;
    for (std::int64_t begin = 0; begin < count; begin += block) {
        const std::int64_t end = least(begin + block, count);
        typename V::Reg sum[wide];
        FEDCLIP_UNROLL for (int v = 0; v < wide; ++v) sum[v] = V::zero();
        std::int64_t k = begin;
        for (; k + wide * V::lanes <= end; k += wide * V::lanes) {
            FEDCLIP_UNROLL for (int v = 0; v < wide; ++v) {
                const auto x = of(k + v * V::lanes);
                sum[v] = V::fma(x, x, sum[v]);
            }
        }
        float rest = 0;
        for (; k < end; ++k) rest += one(k) * one(k);
        const auto low = V::add(sum[0], sum[1]), high = V::add(sum[2], sum[3]);
        total += double(V::sum(V::add(low, high))) + rest;
    }
    return total;
}

template <class V>
double squared_distance(const float* x, const float* origin, std::int64_t count) {
    return sum_of_squares<V>(
        count,
        [&](std::int64_t k) { return V::sub(V::load(x + k), V::load(origin + k)); },
        [&](std::int64_t k) { return x[k] - origin[k]; });
}

template <class V>
double squared_norm_int8(const signed char* q, const float* scales, std::int64_t rows,
                         std::int64_t columns) {
    double total = 0;
    for (std::int64_t r = 0; r < rows; ++r, q += columns) {
        const double squares = sum_of_squares<V>(
            columns, [&](std::int64_t k) { return V::from_int8(q + k); },
            [&](std::int64_t k) { return float(q[k]); });
        total += double(scales[r]) * double(scales[r]) * squares;
    }
    return total;
}

}  // namespace fedclip::cpu
