#include "instruction_set.hpp"
namespace secateur { const InstructionSet AVX2{"avx2", PORTABLE.codes, PORTABLE.halves}; }
