// Memory that grows and never shrinks, for scratch that outlives one call.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

namespace secateur {

// Growing discards the contents. Each allocation starts at a cache line and has 64 spare bytes at its end.
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

}  // namespace secateur
