// torch.optim.Adam on vectors of parameters.
#pragma once

#include "cpu/gemm.h"

namespace fedclip::cpu {

template <class V>
struct AdamRegs {
    typename V::Reg rate, one_beta1, one_beta2, eps, weight_decay;
    bool fresh, last;

    FEDCLIP_INLINE explicit AdamRegs(const Adam& a)
        : rate(V::set(a.rate)),
          one_beta1(V::set(a.one_beta1)),
          one_beta2(V::set(a.one_beta2)),
          eps(V::set(a.eps)),
          weight_decay(V::set(a.weight_decay)),
          fresh(a.fresh),
          last(a.last) {}
};

// One vector of parameters on its way through Adam, in two halves with a gap between.
template <class V>
struct AdamVector {
    typename V::Reg value, exp_avg, exp_avg_sq, root;

    FEDCLIP_INLINE void load(const AdamRegs<V>& adam, const Parameter& p,
                             std::int64_t at) {
        value = V::load(p.before + at);
        exp_avg = adam.fresh ? V::zero() : V::load(p.exp_avg + at);
        exp_avg_sq = adam.fresh ? V::zero() : V::load(p.exp_avg_sq + at);
    }
    FEDCLIP_INLINE void store_moments(const AdamRegs<V>& adam, const Parameter& p,
                                      std::int64_t at) const {
        if (adam.last) return;
        V::store(p.exp_avg + at, exp_avg);
        V::store(p.exp_avg_sq + at, exp_avg_sq);
    }
    FEDCLIP_INLINE void begin(const AdamRegs<V>& adam, typename V::Reg grad) {
        grad = V::fma(adam.weight_decay, value, grad);
        exp_avg_sq = V::fma(adam.one_beta2, V::fms(grad, grad, exp_avg_sq), exp_avg_sq);
        root = V::sqrt(exp_avg_sq);
        exp_avg = V::fma(adam.one_beta1, V::sub(grad, exp_avg), exp_avg);
    }
    FEDCLIP_INLINE void end(const AdamRegs<V>& adam) {
        const typename V::Reg denominator = V::add(root, adam.eps);
        value = V::fnma(adam.rate, V::div(exp_avg, denominator), value);
    }
};

template <class V>
FEDCLIP_INLINE void adam_vector(const AdamRegs<V>& adam, const Parameter& p,
                                std::int64_t at, typename V::Reg grad, int count) {
    AdamVector<V> a;
    a.value = V::load_first(p.before + at, count);
    a.exp_avg = a.exp_avg_sq = V::zero();
    if (!adam.fresh) {
        a.exp_avg = V::load_first(p.exp_avg + at, count);
        a.exp_avg_sq = V::load_first(p.exp_avg_sq + at, count);
    }
    a.begin(adam, grad);
    a.end(adam);
    V::store_first(p.value + at, a.value, count);
    if (adam.last) return;
    V::store_first(p.exp_avg + at, a.exp_avg, count);
    V::store_first(p.exp_avg_sq + at, a.exp_avg_sq, count);
}

// Adam on `count` parameters that follow one another from `at` on.
template <class V>
FEDCLIP_INLINE void adam_run(const AdamRegs<V>& adam, const Parameter& p,
                             std::int64_t at, const float* grad, std::int64_t count) {
    const Parameter q = p;  // here, as a store might change it elsewhere
    std::int64_t k = 0;
    for (; k + V::lanes <= count; k += V::lanes) {
        AdamVector<V> a;
        a.load(adam, q, at + k);
        a.begin(adam, V::load(grad + k));
        a.end(adam);
        V::store(q.value + at + k, a.value);
        a.store_moments(adam, q, at + k);
    }
    if (k < count) adam_vector<V>(adam, p, at + k, V::load(grad + k), int(count - k));
}

}  // namespace fedclip::cpu
