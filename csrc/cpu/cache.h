// The caches of this machine.
#pragma once

#include <cstdint>

namespace fedclip::cpu {

// Bytes of the caches from the second level on that one core has when all are busy: its
// own, and its share of those that cores have in common.  0 where the system does not
// say, as outside Linux.  Read once.
std::int64_t cache_of_core();

}  // namespace fedclip::cpu
