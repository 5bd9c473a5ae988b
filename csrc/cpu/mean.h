// Weighted means over clients, read in place: memory bandwidth is the ceiling.
//
// Groups of clients are summed in fp32 registers and the groups in float64: as fast as
// a plain fp32 sum, and an order of magnitude more exact for many clients.
#pragma once

#include "cpu/gemm.h"

namespace fedclip::cpu {

constexpr int kGroup = 8;  // clients, as in ops/means.py
// Of int8 there are twice as many: their totals are more memory than they are.
constexpr int kInt8Group = 16;
constexpr int kAhead = 512;  // bytes, to be fetched ahead in a client's int8

template <class V>
FEDCLIP_INLINE typename V::Reg load_as_float(const float* p) {
    return V::load(p);
}

template <class V>
FEDCLIP_INLINE typename V::Reg load_as_float(const signed char* p) {
    return V::from_int8(p);
}

// What becomes of a group's sum.
enum class Then { write, begin_total, add_total };

// N vectors of each of G clients, from element k on.
template <class V, int G, int N, Then then, class T>
FEDCLIP_INLINE void sum_vectors(const T* const* xs, const typename V::Reg (&share)[G],
                                std::int64_t k, double* total, float* out) {
    typename V::Reg sum[N];
    FEDCLIP_UNROLL for (int g = 0; g < G; ++g) {
        FEDCLIP_UNROLL for (int v = 0; v < N; ++v) {
            const std::int64_t at = k + v * V::lanes;
            // Bytes take so long to convert that too few lines are under way else;
            // floats come faster as the processor fetches them.
            if (sizeof(T) == 1 && at % 64 == 0) prefetch(xs[g] + at + kAhead);
            const typename V::Reg x = load_as_float<V>(xs[g] + at);
            sum[v] = g ? V::fma(share[g], x, sum[v]) : V::mul(share[g], x);
        }
    }
    FEDCLIP_UNROLL for (int v = 0; v < N; ++v) {
        const std::int64_t at = k + v * V::lanes;
        if constexpr (then == Then::write) {
            V::store(out + at, sum[v]);
        } else {
            if constexpr (then == Then::begin_total) {
                V::store_doubles(total + at, sum[v]);
            } else {
                V::add_to(total + at, sum[v]);
            }
        }
    }
}

// out or total[k] (+)= sum_g shares[g] xs[g][k], k < count.
template <class V, int G, Then then, class T>
FEDCLIP_INLINE void group_sum(const T* const* xs, const float* shares,
                              std::int64_t count, double* total, float* out) {
    constexpr int wide = sizeof(T) == 1 ? 4 : 8;  // vectors a run: as measured
    typename V::Reg share[G];
    FEDCLIP_UNROLL for (int g = 0; g < G; ++g) share[g] = V::set(shares[g]);
    std::int64_t k = 0;
    for (; k + wide * V::lanes <= count; k += wide * V::lanes) {
        sum_vectors<V, G, wide, then>(xs, share, k, total, out);
    }
    for (; k + V::lanes <= count; k += V::lanes) {
        sum_vectors<V, G, 1, then>(xs, share, k, total, out);
    }
    for (; k < count; ++k) {
        float sum = 0;
        for (int g = 0; g < G; ++g) sum += shares[g] * float(xs[g][k]);
        if (then == Then::write) out[k] = sum;
        if (then == Then::begin_total) total[k] = sum;
        if (then == Then::add_total) total[k] += sum;
    }
}

template <class V, Then then, int G, class T>
FEDCLIP_INLINE void last_group_sum(const T* const* xs, const float* shares,
                                   std::int64_t clients, std::int64_t count,
                                   double* total, float* out) {
    if constexpr (G > 0) {
        if (clients == G) {
            group_sum<V, G, then>(xs, shares, count, total, out);
        } else {
            last_group_sum<V, then, G - 1>(xs, shares, clients, count, total, out);
        }
    }
}

// All clients over `rows` rows of `columns` elements that start at `begin`; client i
// has the share share(i, r) of row r.  The clients pass once over all rows: a long
// stretch of each client's memory at a time.
template <class V, int Group, class T, class Share>
FEDCLIP_INLINE void mean_rows(const T* const* xs, const Share& share,
                              std::int64_t clients, std::int64_t rows,
                              std::int64_t columns, std::int64_t begin, double* total,
                              float* out) {
    const T* now[Group];
    float shares[Group];
    for (std::int64_t i = 0; i < clients; i += Group) {
        const std::int64_t size = least(Group, clients - i);
        for (std::int64_t r = 0; r < rows; ++r) {
            const std::int64_t at = r * columns;
            for (std::int64_t g = 0; g < size; ++g) {
                now[g] = xs[i + g] + begin + at;
                shares[g] = share(i + g, r);
            }
            if (clients <= Group) {
                last_group_sum<V, Then::write, Group>(now, shares, size, columns,
                                                      total + at, out + at);
            } else if (size < Group) {
                last_group_sum<V, Then::add_total, Group>(now, shares, size, columns,
                                                          total + at, out + at);
            } else if (i == 0) {
                group_sum<V, Group, Then::begin_total>(now, shares, columns, total + at,
                                                       out + at);
            } else {
                group_sum<V, Group, Then::add_total>(now, shares, columns, total + at,
                                                     out + at);
            }
        }
    }
    if (clients <= Group) return;
    const std::int64_t count = rows * columns;
    std::int64_t k = 0;
    for (; k + V::lanes <= count; k += V::lanes) {
        V::store(out + k, V::from_double(total + k));
    }
    for (; k < count; ++k) out[k] = float(total[k]);
}

template <class V>
void mean(const float* const* xs, const float* shares, std::int64_t clients,
          std::int64_t begin, std::int64_t count, float* out) {
    alignas(64) double total[kMeanBlock];
    const auto share = [&](std::int64_t i, std::int64_t) { return shares[i]; };
    mean_rows<V, kGroup>(xs, share, clients, 1, count, begin, total, out + begin);
}

// What a client's int8 of a row count for: its share times the row's scale.
struct ScaledShare {
    const float* const* scales;
    const double* shares;
    std::int64_t top;  // row 0 of the block
    FEDCLIP_INLINE float operator()(std::int64_t i, std::int64_t r) const {
        return float(shares[i] * double(scales[i][top + r]));
    }
};

template <class V>
void mean_int8(const signed char* const* qs, const float* const* scales,
               const double* shares, std::int64_t clients, std::int64_t top,
               std::int64_t rows, std::int64_t columns, std::int64_t begin,
               float* out) {
    alignas(64) double total[kMeanBlock];
    const ScaledShare share{scales, shares, top};
    mean_rows<V, kInt8Group>(qs, share, clients, rows, columns, begin, total,
                             out + begin);
}

}  // namespace fedclip::cpu
