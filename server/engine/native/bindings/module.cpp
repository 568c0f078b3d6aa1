// The Python module.
#include "bindings/bindings.hpp"

NB_MODULE(_core, module) {
    module.doc() = "The C++ runtime: packed weights and their products, a decoder's forward pass, and sampling.";
    secateur::bind_kernels(module);
    secateur::bind_model(module);
    secateur::bind_step(module);
    secateur::bind_sampling(module);
    secateur::bind_attention(module);
}
