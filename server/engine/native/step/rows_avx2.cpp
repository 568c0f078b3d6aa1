// Norms, activations and attention, compiled for avx2.
#define SECATEUR_SET rows_avx2
#include "step/row_kernels.hpp"
