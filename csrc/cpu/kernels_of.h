// The table of kernels on vectors of type V; included by one file per instruction set.
#pragma once

#include "cpu/backward.h"
#include "cpu/distance.h"
#include "cpu/forward.h"
#include "cpu/loss.h"
#include "cpu/mean.h"
#include "cpu/peak.h"
#include "cpu/update.h"

namespace fedclip::cpu {

template <class V, class T>
constexpr Products products_of() {
    Products p{};
    p.pack_weights = pack_weights<V, T>;
    p.load = load<V, T>;
    p.hidden = hidden<V, T>;
    p.scores = scores<V, T>;
    p.grad_scores = grad_scores<V, T>;
    p.grad_hidden = grad_hidden<V, T>;
    p.update = update<V, T>;
    return p;
}

template <class V>
constexpr Kernels kernels_of() {
    Kernels k{};
    k.lanes = V::lanes;
    k.fp32 = products_of<V, float>();
    k.bf16 = products_of<V, Pair>();
    k.gate = gate<V>;
    k.gate_and_logits = gate_and_logits<V>;
    k.loss = loss<V>;
    k.load_backward = load_backward<V>;
    k.gate_backward = gate_backward<V>;
    k.grad_weights = grad_weights<V>;
    k.mean = mean<V>;
    k.mean_int8 = mean_int8<V>;
    k.squared_distance = squared_distance<V>;
    k.squared_norm_int8 = squared_norm_int8<V>;
    k.fma_peak = fma_peak<V>;
    k.read = read<V>;
    return k;
}

}  // namespace fedclip::cpu
