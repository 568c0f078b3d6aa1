// Mappings by mmap, with gaps that AddressSanitizer watches.
#include "base/mapping.hpp"

#include <sys/mman.h>

#include <new>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace secateur {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr int64_t GAP = 64;
void poison(void* from, int64_t bytes) { __asan_poison_memory_region(from, bytes); }
void unpoison(void* from, size_t bytes) { __asan_unpoison_memory_region(from, bytes); }
#else
constexpr int64_t GAP = 0;
void poison(void*, int64_t) {}
void unpoison(void*, size_t) {}
#endif

constexpr size_t PAGE = 4096;

}  // namespace

Mapping::Mapping(size_t bytes) : size_((bytes + PAGE - 1) / PAGE * PAGE) {
    void* data = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<uint8_t*>(data);
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(other.size_), used_(other.used_) {}

Mapping::~Mapping() {
    if (!data_) return;
    unpoison(data_, size_);
    munmap(data_, size_);
}

int64_t Mapping::part_bytes(int64_t bytes) { return (bytes + 63) / 64 * 64 + GAP; }

uint8_t* Mapping::take_bytes(int64_t bytes) {
    uint8_t* part = data_ + used_;
    used_ += part_bytes(bytes);
    poison(part + bytes, part_bytes(bytes) - bytes);
    return part;
}

}  // namespace secateur
