// Registers the CPU kernels with the dispatcher.
#include "register.h"

FEDCLIP_REGISTER(CPU)
