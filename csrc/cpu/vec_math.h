// exp and tanh on vectors, to about one unit in the last place; a NaN stays a NaN.
#pragma once

#include "cpu/inline.h"

namespace fedclip::cpu {

// Cody-Waite reduction to |r| <= ln(2)/2 and the Cephes polynomial of expf.
template <class V>
FEDCLIP_INLINE typename V::Reg exp(typename V::Reg x) {
    using Reg = typename V::Reg;
    x = V::min(V::set(88.37f), V::max(V::set(-104.f), x));
    const Reg n = V::round(V::mul(x, V::set(1.44269504088896341f)));
    Reg r = V::fnma(n, V::set(0.693359375f), x);
    r = V::fnma(n, V::set(-2.12194440e-4f), r);
    Reg p = V::set(1.9875691500e-4f);
    p = V::fma(p, r, V::set(1.3981999507e-3f));
    p = V::fma(p, r, V::set(8.3334519073e-3f));
    p = V::fma(p, r, V::set(4.1665795894e-2f));
    p = V::fma(p, r, V::set(1.6666665459e-1f));
    p = V::fma(p, r, V::set(5.0000001201e-1f));
    p = V::fma(V::mul(r, r), p, V::add(r, V::set(1.f)));
    return V::scale(p, n);
}

// An odd polynomial (Cephes) near zero, 1 - 2 / (e^2|x| + 1) elsewhere.
template <class V>
FEDCLIP_INLINE typename V::Reg tanh(typename V::Reg x) {
    using Reg = typename V::Reg;
    const Reg one = V::set(1.f), size = V::abs(x), square = V::mul(x, x);
    Reg p = V::set(-5.70498872745e-3f);
    p = V::fma(p, square, V::set(2.06390887954e-2f));
    p = V::fma(p, square, V::set(-5.37397155531e-2f));
    p = V::fma(p, square, V::set(1.33314422036e-1f));
    p = V::fma(p, square, V::set(-3.33332819422e-1f));
    const Reg near = V::fma(V::mul(p, square), x, x);
    const Reg e = exp<V>(V::add(size, size));
    const Reg far = V::sub(one, V::div(V::set(2.f), V::add(e, one)));
    return V::if_less(size, V::set(0.625f), near, V::copy_sign(far, x));
}

}  // namespace fedclip::cpu
