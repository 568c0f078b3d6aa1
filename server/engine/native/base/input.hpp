// The rows that a matrix is multiplied with, rounded to what its kernels read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace secateur {

// Memory that grows and is never copied; every allocation starts at a cache line and ends after 64 spare bytes.
template <typename T> class Buffer {
public:
    T* grow(size_t count) {
        if (count > capacity_) {
            size_t bytes = (count * sizeof(T) + 127) / 64 * 64;
            data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
            capacity_ = data_ ? count : 0;
            if (!data_) throw std::bad_alloc();
        }
        return data_.get();
    }
    T* get() const { return data_.get(); }

private:
    struct Free { void operator()(T* memory) const { std::free(memory); } };
    std::unique_ptr<T[], Free> data_;
    size_t capacity_ = 0;
};

// One batch of rows, each padded with zeros to a multiple of 64 columns.
struct Input {
    int64_t tokens = 0, columns = 0, runs = 0;
    bool has_codes = false, has_halves = false;
    Buffer<int8_t> codes;      // [tokens, runs * 64]: value = code * scale
    Buffer<float> scales;      // [tokens, runs, 2]: of each span of 32 columns
    Buffer<int32_t> sums;      // [tokens, runs, 2]: codes of each span, which biased weights are corrected with
    Buffer<uint16_t> halves;   // [tokens, runs * 64]: bfloat16 bits
};

// Rounds rows `first` .. `last` of `values` [tokens, columns] into `input`, whose buffers are large enough.
void round_codes(const float* values, Input& input, int64_t first, int64_t last);
void round_halves(const float* values, Input& input, int64_t first, int64_t last);

}  // namespace secateur
