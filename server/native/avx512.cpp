#include "instruction_set.hpp"
namespace secateur { const InstructionSet AVX512{"avx512", PORTABLE.codes, PORTABLE.halves}; }
