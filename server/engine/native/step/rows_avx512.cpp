// Norms, activations and attention, compiled for avx512.
#define SECATEUR_SET rows_avx512
#include "step/row_kernels.hpp"
