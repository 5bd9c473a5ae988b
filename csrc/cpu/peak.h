// The ceilings that benchmarks quote per cents of: FMA throughput and plain reads.
#pragma once

#include "cpu/gemm.h"

namespace fedclip::cpu {

// rounds * kPeakFmas register FMAs in 10 independent chains.
template <class V>
float fma_peak(std::int64_t rounds) {
    constexpr int chains = 10;
    typename V::Reg acc[chains];
    const typename V::Reg a = V::set(0.5f), b = V::set(float(rounds & 1));
    FEDCLIP_UNROLL for (int i = 0; i < chains; ++i) acc[i] = V::set(float(i));
    for (std::int64_t n = 0; n < rounds; ++n) {
        FEDCLIP_UNROLL for (int k = 0; k < kPeakFmas / chains; ++k) {
            FEDCLIP_UNROLL for (int i = 0; i < chains; ++i) acc[i] =
                V::fma(acc[i], a, b);
        }
    }
    typename V::Reg sum = V::zero();
    FEDCLIP_UNROLL for (int i = 0; i < chains; ++i) sum = V::add(sum, acc[i]);
    return V::sum(sum);
}

template <class V>
float read(const float* data, std::int64_t count) {
    constexpr int ways = 8;
    typename V::Reg acc[ways];
    FEDCLIP_UNROLL for (int i = 0; i < ways; ++i) acc[i] = V::zero();
    for (std::int64_t k = 0; k + ways * V::lanes <= count; k += ways * V::lanes) {
        FEDCLIP_UNROLL for (int i = 0; i < ways; ++i) {
            acc[i] = V::add(acc[i], V::load(data + k + i * V::lanes));
        }
    }
    typename V::Reg sum = V::zero();
    FEDCLIP_UNROLL for (int i = 0; i < ways; ++i) sum = V::add(sum, acc[i]);
    return V::sum(sum);
}

}  // namespace fedclip::cpu
