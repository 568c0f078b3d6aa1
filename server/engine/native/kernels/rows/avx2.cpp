// The row kernels compiled for avx2.
#define SECATEUR_SET rows_avx2
#include "kernels/rows/build.hpp"
