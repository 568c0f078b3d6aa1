// Matrices laid out anew for registers of 64 bytes: rows lie beside each other, so that products need no sum across a
// register and memory is read as one stream.
//
// A tile is what one register holds: 16 rows times 4 columns of codes, or 2 of bf16, row r in the r-th element of 32 bits.
// A block is 32 rows, so two tiles stand side by side; they are numbered in a run of 64 columns, 2 j and 2 j + 1 for the
// j-th columns. For each block and run, `values` has lines: of one tile each, codes of 8 bits plus 128; or of two whose
// columns follow each other, codes of 4 bits plus 8, the later one in the high halves of bytes. Pruned, a line has what is
// kept of its tile, from its first lane on, or as many bytes as the fuller of its two; `mask` [blocks, runs, 32] has a
// word for each tile of codes, half a word for each of bf16, and `offsets` [blocks, runs] where the values of a run begin,
// in bytes. `scales` is [blocks, groups, 32]. What is beyond the last row or column is 0.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "kernels/matrices/decode.hpp"
#include "kernels/matrices/matrix.hpp"

namespace secateur {

constexpr int64_t TILE_ROWS = 16;
constexpr int64_t BLOCK_ROWS = 32;
constexpr int64_t PARTS = 2;  // tiles beside each other

// What is added to a code, so that it is not negative.
constexpr int bias(Kind kind) { return kind == Kind::int8 ? 128 : kind == Kind::int4 ? 8 : 0; }

inline int64_t blocks(const Matrix& weight) { return (weight.rows + BLOCK_ROWS - 1) / BLOCK_ROWS; }

// Columns of a tile, and bytes of a block's run where nothing is pruned.
constexpr int64_t tile_columns(Kind kind) { return kind == Kind::bf16 ? 2 : 4; }
constexpr int64_t run_bytes(Kind kind) { return kind == Kind::int4 ? 1024 : kind == Kind::int8 ? 2048 : 4096; }

// Tiles of a line, and lines of a run.
constexpr int64_t line_tiles(Kind kind) { return kind == Kind::int4 ? 2 : 1; }
constexpr int64_t lines(Kind kind) { return RUN / tile_columns(kind) / line_tiles(kind) * PARTS; }

// The number of the tile `i` of a line.
constexpr int64_t tile_of(Kind kind, int64_t line, int64_t i) {
    return (line / PARTS * line_tiles(kind) + i) * PARTS + line % PARTS;
}

// Bytes of a pruned line, of the masks of its tiles.
inline int64_t kept_bytes(Kind kind, uint64_t mask, uint64_t later = 0) {
    return std::max(std::popcount(mask), std::popcount(later)) * (kind == Kind::bf16 ? 2 : 1);
}

// Bytes that the tiles of a matrix need.
int64_t tiled_bytes(const Matrix& from);

// The same matrix in tiles, at `to`, which has tiled_bytes(from) bytes and begins at a multiple of 64.
Matrix tile(const Matrix& from, uint8_t* to);

// The mask of a tile of a pruned matrix.
inline uint64_t tile_mask(const Matrix& weight, int64_t run, int64_t tile) {
    if (weight.dense()) return ~uint64_t{0};
    if (weight.kind != Kind::bf16) return weight.mask[run * 32 + tile];
    return weight.mask[run * 32 + tile / 2] >> (tile % 2 * 32) & 0xffffffff;
}

// Calls `visit(column, value)` for each stored value of a row in tiles, in the order of the columns.
template <typename Visit> void for_each_tiled(const Matrix& weight, int64_t index, Visit visit) {
    const Kind kind = weight.kind;
    const int64_t block = index / BLOCK_ROWS, part = index / TILE_ROWS % PARTS, first = index % TILE_ROWS * tile_columns(kind);
    const auto value = [kind](const uint8_t* line, int64_t place, int64_t tile) -> int32_t {
        if (kind == Kind::bf16) return stored(kind, line, place);
        return (kind == Kind::int4 ? line[place] >> (tile * 4) & 15 : line[place]) - bias(kind);
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

// The same for a row of any matrix.
template <typename Visit> void for_each_value(const Matrix& weight, int64_t index, Visit visit) {
    weight.tiled ? for_each_tiled(weight, index, visit) : for_each(weight, index, visit);
}

// Where the scale of a row's group is, of any matrix.
inline int64_t scale_place(const Matrix& weight, int64_t index, int64_t group) {
    return weight.tiled ? (index / BLOCK_ROWS * weight.groups() + group) * BLOCK_ROWS + index % BLOCK_ROWS
                        : index * weight.groups() + group;
}

}  // namespace secateur
