// The row kernels compiled for portable.
#define SECATEUR_SET rows_portable
#include "kernels/rows/build.hpp"
