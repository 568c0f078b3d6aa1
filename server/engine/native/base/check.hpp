// What must hold of a model and of a batch before anything is computed.
#pragma once

#include <string>

#include "step/model.hpp"

namespace secateur {

// Throws std::invalid_argument with the sentence unless it held.
void require(bool held, const std::string& sentence);

// The model, whose shapes fit each other; throws std::invalid_argument, which names what does not.
Model checked(Model model);

}  // namespace secateur
