// The squared distance of two vectors, read once: memory bandwidth is the ceiling.
#pragma once

#include "cpu/gemm.h"

namespace fedclip {

// Blocks are summed in fp32 registers and the blocks in float64.
template <class V>
double squared_distance(const float* x, const float* origin, std::int64_t count) {
    constexpr int wide = 4;
    constexpr std::int64_t block = 4096;
    double total = 0;
    for (std::int64_t begin = 0; begin < count; begin += block) {
        const std::int64_t end = least(begin + block, count);
        typename V::Reg sum[wide];
        UNROLL for (int v = 0; v < wide; ++v) sum[v] = V::zero();
        std::int64_t k = begin;
        for (; k + wide * V::lanes <= end; k += wide * V::lanes) {
            UNROLL for (int v = 0; v < wide; ++v) {
                const std::int64_t at = k + v * V::lanes;
                const auto step = V::sub(V::load(x + at), V::load(origin + at));
                sum[v] = V::fma(step, step, sum[v]);
            }
        }
        float rest = 0;
        for (; k < end; ++k) rest += (x[k] - origin[k]) * (x[k] - origin[k]);
        const auto low = V::add(sum[0], sum[1]), high = V::add(sum[2], sum[3]);
        total += double(V::sum(V::add(low, high))) + rest;
    }
    return total;
}

}  // namespace fedclip
