// Two bfloat16 numbers side by side: an element of the products' factors in bfloat16.
// An instruction-set file may include this header.
#pragma once

#include <cstdint>

#include "cpu/inline.h"

namespace fedclip::cpu {

struct Pair {
    std::uint32_t bits;  // the first number in the lower half
};

// Numbers in one element of a factor.
template <class T>
constexpr std::int64_t numbers_in = 1;
template <>
constexpr std::int64_t numbers_in<Pair> = 2;

// Elements that hold `count` numbers.
template <class T>
FEDCLIP_INLINE std::int64_t elements(std::int64_t count) {
    return (count + numbers_in<T> - 1) / numbers_in<T>;
}

}  // namespace fedclip::cpu
