// Lays matrices out in tiles.
#include "kernels/matrices/tiles.hpp"

#include <algorithm>
#include <vector>

namespace secateur {
namespace {

constexpr int64_t SPARE = 64;  // bytes that a load of the last values may read past them

int64_t whole(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// A block of rows as plain values, with masks of the kept ones.
class Block {
public:
    explicit Block(const Matrix& from)
        : from_(from), width_(from.runs() * RUN), values_(BLOCK_ROWS * width_), kept_(BLOCK_ROWS * from.runs()) {}

    void read(int64_t block) {
        read_masks(block);
        const bool codes = from_.kind != Kind::int3;  // those of 3 bits stay as stored
        const int added = codes ? bias(from_.kind, from_.asymmetric()) : 0;
        std::fill(values_.begin(), values_.end(), static_cast<uint16_t>(added));
        for (int64_t r = 0; r < BLOCK_ROWS && block * BLOCK_ROWS + r < from_.rows; ++r)
            for_each_stored(from_, block * BLOCK_ROWS + r, [&](int64_t column, int32_t bits) {
                values_[r * width_ + column] = static_cast<uint16_t>(codes ? value_of(from_, bits) + added : bits);
            });
    }

    // Enough to compute sizes. A mask may name columns of padding, which are dropped.
    void read_masks(int64_t block) {
        if (from_.dense()) return;
        const int64_t runs = from_.runs(), over = runs * RUN - from_.columns;
        std::fill(kept_.begin(), kept_.end(), 0);
        for (int64_t r = 0; r < BLOCK_ROWS && block * BLOCK_ROWS + r < from_.rows; ++r) {
            std::copy_n(from_.mask + (block * BLOCK_ROWS + r) * runs, runs, kept_.begin() + r * runs);
            kept_[(r + 1) * runs - 1] &= ~uint64_t{0} >> over;
        }
    }

    // A tile's value in a lane, and its mask of kept lanes.
    uint16_t value(int64_t run, int64_t tile, int64_t lane) const {
        const int64_t width = tile_columns(from_.kind), row = tile % PARTS * TILE_ROWS + lane / width;
        return values_[row * width_ + run * RUN + tile / PARTS * width + lane % width];
    }

    uint64_t mask(int64_t run, int64_t tile) const {
        if (from_.dense()) return from_.kind == Kind::bf16 ? 0xffffffff : ~uint64_t{0};
        const int64_t width = tile_columns(from_.kind), first = tile / PARTS * width;
        uint64_t mask = 0;
        for (int64_t r = 0; r < TILE_ROWS; ++r) {
            const uint64_t row = kept_[(tile % PARTS * TILE_ROWS + r) * from_.runs() + run];
            mask |= (row >> first & ((uint64_t{1} << width) - 1)) << (r * width);
        }
        return mask;
    }

    // Bytes of a line.
    int64_t bytes(int64_t run, int64_t line) const {
        const Kind kind = from_.kind;
        return kept_bytes(kind, mask(run, tile_of(kind, line, 0)),
                          kind == Kind::int4 ? mask(run, tile_of(kind, line, 1)) : 0);
    }

private:
    const Matrix& from_;
    int64_t width_;
    std::vector<uint16_t> values_;
    std::vector<uint64_t> kept_;
};

// Bytes of the kept values of a pruned matrix.
int64_t all_kept_bytes(const Matrix& from) {
    Block block(from);
    int64_t bytes = 0;
    for (int64_t i = 0; i < blocks(from); ++i) {
        block.read_masks(i);
        for (int64_t run = 0; run < from.runs(); ++run)
            for (int64_t line = 0; line < lines(from.kind); ++line) bytes += block.bytes(run, line);
    }
    return bytes;
}

struct Sizes {
    int64_t values, mask, offsets, scales, minimums;
    int64_t total() const {
        return whole(values + SPARE) + whole(mask) + whole(offsets) + whole(scales) + whole(minimums);
    }
};

Sizes sizes(const Matrix& from) {
    const int64_t runs = blocks(from) * from.runs();
    const int64_t scales = from.kind == Kind::bf16 ? 0 : blocks(from) * from.groups() * BLOCK_ROWS * 2;
    if (from.dense()) return {runs * run_bytes(from.kind), 0, 0, scales, from.asymmetric() ? scales : 0};
    return {all_kept_bytes(from), runs * 32 * 8, runs * 8, scales, 0};
}

// Writes the lines of a run of PackedSpans; returns their end.
uint8_t* write_packed_run(const Block& block, Kind kind, int64_t run, uint8_t* to) {
    for (int64_t part = 0; part < 2 * PARTS; ++part, to += bits_of(kind) * 64)
        for (int64_t lane = 0; lane < 64; ++lane) {
            uint8_t codes[8];
            for (int64_t i = 0; i < 8; ++i)
                codes[i] = static_cast<uint8_t>(block.value(run, (part / PARTS * 8 + i) * PARTS + part % PARTS, lane));
            const PackedSpan packed = PackedSpan::of(kind, codes);
            for (int64_t i = 0; i < bits_of(kind); ++i) to[i * 64 + lane] = packed.bytes[i];
        }
    return to;
}

// Writes the lines of a run, and the masks of its tiles unless `masks` is null; returns the end of the lines.
uint8_t* write_run(const Block& block, Kind kind, int64_t run, uint64_t* masks, uint8_t* to) {
    for (int64_t line = 0; line < lines(kind); ++line) {
        const int64_t bytes = block.bytes(run, line);
        std::fill_n(to, bytes, uint8_t{0});
        for (int64_t i = 0; i < line_tiles(kind); ++i) {
            const int64_t tile = tile_of(kind, line, i);
            const uint64_t mask = block.mask(run, tile);
            if (masks && kind == Kind::bf16) masks[tile / 2] = tile % 2 ? masks[tile / 2] | mask << 32 : mask;
            else if (masks) masks[tile] = mask;
            uint8_t* next = to;
            for (uint64_t left = mask; left; left &= left - 1) {
                const uint16_t value = block.value(run, tile, std::countr_zero(left));
                if (kind == Kind::bf16) next = std::copy_n(reinterpret_cast<const uint8_t*>(&value), 2, next);
                else *next++ |= static_cast<uint8_t>(value << (i * 4));
            }
        }
        to += bytes;
    }
    return to;
}

// `scales` [rows, groups], or minimums, by blocks.
void write_scales(const Matrix& from, const uint16_t* scales, uint16_t* to) {
    for (int64_t block = 0; block < blocks(from); ++block)
        for (int64_t group = 0; group < from.groups(); ++group)
            for (int64_t r = 0; r < BLOCK_ROWS; ++r, ++to) {
                const int64_t row = block * BLOCK_ROWS + r;
                *to = row < from.rows ? scales[row * from.groups() + group] : uint16_t{0};
            }
}

}  // namespace

int64_t tiled_bytes(const Matrix& from) { return sizes(from).total(); }

Matrix tile(const Matrix& from, uint8_t* to) {
    const Sizes size = sizes(from);
    Matrix made = from;
    made.tiled = true, made.values = to;
    uint8_t* next = to;
    auto* masks = reinterpret_cast<uint64_t*>(next += whole(size.values + SPARE));
    auto* offsets = reinterpret_cast<uint64_t*>(next += whole(size.mask));
    auto* scales = reinterpret_cast<uint16_t*>(next += whole(size.offsets));
    made.mask = from.dense() ? nullptr : masks, made.offsets = from.dense() ? nullptr : offsets;
    made.scales = from.kind == Kind::bf16 ? nullptr : scales;
    if (made.scales) write_scales(from, from.scales, scales);
    if (from.asymmetric()) {
        auto* minimums = reinterpret_cast<uint16_t*>(next += whole(size.scales));
        write_scales(from, from.minimums, minimums);
        made.minimums = minimums;
    }
    Block block(from);
    uint8_t* kept = to;
    for (int64_t i = 0; i < blocks(from); ++i) {
        block.read(i);
        for (int64_t run = 0; run < from.runs(); ++run) {
            const int64_t number = i * from.runs() + run;
            if (!from.dense()) offsets[number] = static_cast<uint64_t>(kept - to);
            kept = by_spans(from.kind)
                       ? write_packed_run(block, from.kind, run, kept)
                       : write_run(block, from.kind, run, from.dense() ? nullptr : masks + number * 32, kept);
        }
    }
    return made;
}

}  // namespace secateur
