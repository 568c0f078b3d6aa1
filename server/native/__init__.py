"""The CPU runtime in C++: packed weights as they lie in the mapped file, and products with them."""
