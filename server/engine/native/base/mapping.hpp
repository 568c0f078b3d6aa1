// Anonymous memory mappings, carved into parts.
#pragma once

#include <cstddef>
#include <cstdint>

namespace secateur {

// Zeroed pages. Under AddressSanitizer a poisoned cache line follows each part that is taken.
class Mapping {
public:
    explicit Mapping(size_t bytes);
    Mapping(Mapping&& other) noexcept;
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    Mapping& operator=(Mapping&&) = delete;
    ~Mapping();

    size_t size() const { return size_; }

    // The next `count` values, on a multiple of 64 bytes. The sum of `part_bytes` must not exceed the size.
    template <class Value> Value* take(int64_t count) {
        return reinterpret_cast<Value*>(take_bytes(count * static_cast<int64_t>(sizeof(Value))));
    }

    // What a part of `bytes` uses of the mapping.
    static int64_t part_bytes(int64_t bytes);

private:
    uint8_t* take_bytes(int64_t bytes);

    uint8_t* data_;
    size_t size_;
    int64_t used_ = 0;
};

}  // namespace secateur
