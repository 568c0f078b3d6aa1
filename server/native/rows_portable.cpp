// Norms, activations and attention, compiled for portable.
#define SECATEUR_SET rows_portable
#include "row_kernels.hpp"
