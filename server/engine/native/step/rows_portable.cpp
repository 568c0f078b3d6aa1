// Norms, activations and attention, compiled for portable.
#define SECATEUR_SET rows_portable
#include "step/row_kernels.hpp"
