// The table of kernels on vectors of type V; included by one file per instruction set.
#pragma once

#include "cpu/backward.h"
#include "cpu/forward.h"
#include "cpu/loss.h"
#include "cpu/mean.h"
#include "cpu/peak.h"
#include "cpu/update.h"

namespace fedclip {

template <class V>
constexpr Kernels kernels_of() {
    Kernels k{};
    k.lanes = V::lanes;
    k.load = load<V>;
    k.hidden = hidden<V>;
    k.scores = scores<V>;
    k.gate = gate<V>;
    k.gate_and_logits = gate_and_logits<V>;
    k.loss = loss<V>;
    k.grad_scores = grad_scores<V>;
    k.grad_hidden = grad_hidden<V>;
    k.pack_w2 = pack_w2<V>;
    k.update = update<V>;
    k.load_backward = load_backward<V>;
    k.gate_backward = gate_backward<V>;
    k.grad_weights = grad_weights<V>;
    k.mean = mean<V>;
    k.mean_int8 = mean_int8<V>;
    k.fma_peak = fma_peak<V>;
    k.read = read<V>;
    return k;
}

}  // namespace fedclip
