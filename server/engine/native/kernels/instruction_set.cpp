// Chooses an instruction set from what was compiled and what the processor reports.
#include <stdexcept>

#include "kernels/instruction_set.hpp"

#if defined(SECATEUR_NEON)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace secateur {
namespace {

struct Candidate {
    const InstructionSet* set;
    bool supported;
    const char* features;
};

std::vector<Candidate> candidates() {
    std::vector<Candidate> found;
#if defined(SECATEUR_EMULATE)
    found.push_back({&AVX512, true, "AVX-512, emulated"});
#elif defined(SECATEUR_AVX512)
    found.push_back({&AVX512,
                     __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
                         __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vnni") &&
                         __builtin_cpu_supports("avx512bf16"),
                     "AVX-512 with BF16, VNNI and VBMI2"});
#endif
#if defined(SECATEUR_AVX2)
    found.push_back({&AVX2,
                     __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
                         __builtin_cpu_supports("f16c"),
                     "AVX2 with FMA, F16C and BMI2"});
#endif
#if defined(SECATEUR_NEON)
    found.push_back({&DOTPROD, (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0, "NEON with dot products"});
    found.push_back({&NEON, true, "NEON"});
#endif
    found.push_back({&PORTABLE, true, "no vector instructions"});
    return found;
}

}  // namespace

std::vector<const InstructionSet*> available() {
    std::vector<const InstructionSet*> sets;
    for (const Candidate& candidate : candidates())
        if (candidate.supported) sets.push_back(candidate.set);
    return sets;
}

const InstructionSet& choose(std::string_view wanted, std::string& reason) {
    std::string lacking;
    for (const Candidate& candidate : candidates()) {
        bool named = wanted == candidate.set->name;
        if (candidate.supported && (named || wanted.empty())) {
            reason = named ? "it was asked for" : std::string("the processor has ") + candidate.features;
            if (candidate.set == &PORTABLE && !named) reason = "the processor lacks " + lacking;
            else if (!lacking.empty() && !named) reason += " and lacks " + lacking;
            return *candidate.set;
        }
        if (named) throw std::invalid_argument(std::string("this processor lacks ") + candidate.features);
        if (!candidate.supported) lacking += (lacking.empty() ? "" : ", and ") + std::string(candidate.features);
    }
    throw std::invalid_argument("no instruction set is called " + std::string(wanted) +
                                ": choose avx512, avx2, dotprod, neon or portable");
}

}  // namespace secateur
