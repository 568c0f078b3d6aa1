// A matrix layout for registers of 64 bytes: rows lie beside each other, so products need no sum across a register and
// memory is read as one stream.
//
// A tile fills a register: 16 rows times 4 columns of codes, or 2 columns of bf16; row r is the r-th 32-bit element.
// A block is 32 rows, that is, two tiles; the tiles of the j-th columns of a run of 64 are numbered 2 j and 2 j + 1.
// `values` has lines for each block and run: one tile of 8-bit codes plus 128, or of bf16; or two tiles of 4-bit codes
// plus 8 with successive columns, the later one in the high half of each byte. Asymmetric codes have nothing added.
// Codes of 3, 5 and 6 bits are packed by spans of 32 columns: for each of the two tiles, as many lines as bits hold the
// eight tiles of successive columns, as PackedSpan defines; those of 3 bits lie there as stored, for a look-up.
// Pruned, a line has only the kept lanes of its tile, packed; of two tiles, as many bytes as the fuller one needs.
// `mask` [blocks, runs, 32] has a word for each tile of codes, half a word for bf16; `offsets` [blocks, runs] are the
// starts of the runs in bytes; `scales` and `minimums` are [blocks, groups, 32]. Padding beyond the last row or column is 0.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "kernels/matrices/decode.hpp"
#include "kernels/matrices/matrix.hpp"

namespace secateur {

constexpr int64_t TILE_ROWS = 16;
constexpr int64_t BLOCK_ROWS = 32;
constexpr int64_t PARTS = 2;  // tiles of a block

// Added to a value to make it unsigned; for 3 bits, to a level.
constexpr int bias(Kind kind, bool asymmetric = false) {
    if (kind == Kind::int3) return 128;
    return asymmetric || kind == Kind::bf16 ? 0 : 1 << (bits_of(kind) - 1);
}

// Whether tiles lie in PackedSpans.
constexpr bool by_spans(Kind kind) { return kind == Kind::int3 || kind == Kind::int5 || kind == Kind::int6; }

inline int64_t blocks(const Matrix& weight) { return (weight.rows + BLOCK_ROWS - 1) / BLOCK_ROWS; }

// Columns of a tile, and bytes of a block's run if dense.
constexpr int64_t tile_columns(Kind kind) { return kind == Kind::bf16 ? 2 : 4; }
constexpr int64_t run_bytes(Kind kind) { return bits_of(kind) * 256; }

// Tiles of a line, and lines of a run.
constexpr int64_t line_tiles(Kind kind) { return kind == Kind::int4 ? 2 : 1; }
constexpr int64_t lines(Kind kind) { return RUN / tile_columns(kind) / line_tiles(kind) * PARTS; }

// The number of tile `i` of a line.
constexpr int64_t tile_of(Kind kind, int64_t line, int64_t i) {
    return (line / PARTS * line_tiles(kind) + i) * PARTS + line % PARTS;
}

// The codes of one lane of the eight tiles of a span, in as many bytes as a code has bits: lines are these bytes, lane by
// lane. The high bits of the bytes hold the codes that have no byte of their own.
struct PackedSpan {
    uint8_t bytes[6];

    static PackedSpan of(Kind kind, const uint8_t (&t)[8]) {
        const auto byte = [](int value) { return static_cast<uint8_t>(value); };
        switch (kind) {
            case Kind::int3:
                return {{byte(t[0] | t[1] << 3 | t[6] << 6), byte(t[2] | t[3] << 3 | t[7] << 6),
                         byte(t[4] | t[5] << 3 | (t[6] >> 2) << 6 | (t[7] >> 2) << 7)}};
            case Kind::int5:
                return {{byte(t[0] | t[5] << 5), byte(t[1] | t[6] << 5), byte(t[2] | t[7] << 5),
                         byte(t[3] | (t[5] >> 3) << 5 | (t[7] >> 3) << 7),
                         byte(t[4] | (t[6] >> 3) << 5 | (t[7] >> 4) << 7)}};
            default:  // 6 bits
                return {{byte(t[0] | t[3] << 6), byte(t[1] | (t[3] >> 2) << 6), byte(t[2] | (t[3] >> 4) << 6),
                         byte(t[4] | t[7] << 6), byte(t[5] | (t[7] >> 2) << 6), byte(t[6] | (t[7] >> 4) << 6)}};
        }
    }

    uint8_t code(Kind kind, int64_t tile) const {
        const uint8_t* b = bytes;
        if (kind == Kind::int3) {
            if (tile < 6) return b[tile / 2] >> (tile % 2 * 3) & 7;
            return static_cast<uint8_t>(b[tile - 6] >> 6 | (b[2] >> tile & 1) << 2);
        }
        if (kind == Kind::int5) {
            if (tile < 5) return b[tile] & 31;
            if (tile < 7) return static_cast<uint8_t>(b[tile - 5] >> 5 | (b[tile - 2] >> 5 & 3) << 3);
            return static_cast<uint8_t>(b[2] >> 5 | b[3] >> 7 << 3 | b[4] >> 7 << 4);
        }
        b += tile / 4 * 3;
        if (tile % 4 < 3) return b[tile % 4] & 63;
        return static_cast<uint8_t>(b[0] >> 6 | b[1] >> 6 << 2 | b[2] >> 6 << 4);
    }
};

// Bytes of a pruned line with these masks of its tiles.
inline int64_t kept_bytes(Kind kind, uint64_t mask, uint64_t later = 0) {
    return std::max(std::popcount(mask), std::popcount(later)) * (kind == Kind::bf16 ? 2 : 1);
}

// Bytes of a matrix in tiles.
int64_t tiled_bytes(const Matrix& from);

// Lays a matrix out in tiles at `to`, which has tiled_bytes(from) bytes and starts at a multiple of 64.
Matrix tile(const Matrix& from, uint8_t* to);

// The mask of a tile of a pruned matrix.
inline uint64_t tile_mask(const Matrix& weight, int64_t run, int64_t tile) {
    if (weight.dense()) return ~uint64_t{0};
    if (weight.kind != Kind::bf16) return weight.mask[run * 32 + tile];
    return weight.mask[run * 32 + tile / 2] >> (tile % 2 * 32) & 0xffffffff;
}

// `for_each` for a row in tiles by spans.
template <typename Visit> void for_each_packed(const Matrix& weight, int64_t index, Visit visit) {
    const Kind kind = weight.kind;
    const int64_t block = index / BLOCK_ROWS, part = index / TILE_ROWS % PARTS, first = index % TILE_ROWS * 4;
    const int64_t bits = bits_of(kind);
    for (int64_t column = 0; column < weight.columns; ++column) {
        const int64_t span = block * weight.runs() * 2 + column / SPAN;
        const uint8_t* lane = weight.values + (span * PARTS + part) * bits * 64 + first + column % 4;
        PackedSpan packed{};
        for (int64_t i = 0; i < bits; ++i) packed.bytes[i] = lane[i * 64];
        const int32_t code = packed.code(kind, column % SPAN / 4);
        visit(column, kind == Kind::int3 ? weight.levels[code] : code - bias(kind, weight.asymmetric()));
    }
}

// `for_each` for a row in tiles.
template <typename Visit> void for_each_tiled(const Matrix& weight, int64_t index, Visit visit) {
    const Kind kind = weight.kind;
    if (by_spans(kind)) return for_each_packed(weight, index, visit);
    const int64_t block = index / BLOCK_ROWS, part = index / TILE_ROWS % PARTS;
    const int64_t first = index % TILE_ROWS * tile_columns(kind);
    const int added = bias(kind, weight.asymmetric());
    const auto value = [kind, added](const uint8_t* line, int64_t place, int64_t tile) -> int32_t {
        if (kind == Kind::bf16) return stored(kind, line, place);
        return (kind == Kind::int4 ? line[place] >> (tile * 4) & 15 : line[place]) - added;
    };
    for (int64_t run = 0; run < weight.runs(); ++run) {
        const int64_t number = block * weight.runs() + run;
        const uint8_t* values = weight.values + (weight.dense() ? number * run_bytes(kind) : weight.offsets[number]);
        for (int64_t line = 0; line < lines(kind); ++line) {
            uint64_t masks[2] = {};
            for (int64_t i = 0; i < line_tiles(kind); ++i) masks[i] = tile_mask(weight, number, tile_of(kind, line, i));
            for (int64_t i = 0; i < line_tiles(kind) && line % PARTS == part; ++i)
                for (int64_t lane = first; lane < first + tile_columns(kind); ++lane) {
                    const int64_t column = run * RUN + tile_of(kind, line, i) / PARTS * tile_columns(kind) + lane - first;
                    if (!(masks[i] >> lane & 1) || column >= weight.columns) continue;
                    visit(column, value(values, std::popcount(masks[i] & ((uint64_t{1} << lane) - 1)), i));
                }
            values += weight.dense() ? 64 : kept_bytes(kind, masks[0], masks[1]);
        }
    }
}

// `for_each` for a row in any layout.
template <typename Visit> void for_each_value(const Matrix& weight, int64_t index, Visit visit) {
    weight.tiled ? for_each_tiled(weight, index, visit) : for_each(weight, index, visit);
}

// Index of the scale of a row's group, in any layout.
inline int64_t scale_place(const Matrix& weight, int64_t index, int64_t group) {
    return weight.tiled ? (index / BLOCK_ROWS * weight.groups() + group) * BLOCK_ROWS + index % BLOCK_ROWS
                        : index * weight.groups() + group;
}

}  // namespace secateur
