// The row kernels compiled for avx512.
#define SECATEUR_SET rows_avx512
#include "kernels/rows/build.hpp"
