// Checks of what a caller hands in; Python sees a failure as ValueError.
#pragma once

#include <stdexcept>
#include <string>

namespace secateur {

// Throws std::invalid_argument with `sentence` unless `holds`.
inline void require(bool holds, const char* sentence) {
    if (!holds) throw std::invalid_argument(sentence);
}
inline void require(bool holds, const std::string& sentence) { require(holds, sentence.c_str()); }

}  // namespace secateur
