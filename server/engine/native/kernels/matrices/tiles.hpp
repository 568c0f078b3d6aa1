// A matrix layout for registers of 64 bytes: rows lie beside each other, so products need no sum across a register and
// memory is read as one stream.
//
// A tile fills a register: 16 rows times 4 columns of codes, or 2 columns of bf16; row r is the r-th 32-bit element.
// A block is 32 rows, that is, two tiles; the tiles of the j-th columns of a run of 64 are numbered 2 j and 2 j + 1.
// `values` has lines for each block and run: one tile of 8-bit codes plus 128, or of bf16; or two tiles of 4-bit codes
// plus 8 with successive columns, the later one in the high half of each byte.
// Pruned, a line has only the kept lanes of its tile, packed; of two tiles, as many bytes as the fuller one needs.
// `mask` [blocks, runs, 32] has a word for each tile of codes, half a word for bf16; `offsets` [blocks, runs] are the
// starts of the runs in bytes; `scales` is [blocks, groups, 32]. Padding beyond the last row or column is 0.
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

// Added to a code to make it unsigned.
constexpr int bias(Kind kind) { return kind == Kind::int8 ? 128 : kind == Kind::int4 ? 8 : 0; }

inline int64_t blocks(const Matrix& weight) { return (weight.rows + BLOCK_ROWS - 1) / BLOCK_ROWS; }

// Columns of a tile, and bytes of a block's run if dense.
constexpr int64_t tile_columns(Kind kind) { return kind == Kind::bf16 ? 2 : 4; }
constexpr int64_t run_bytes(Kind kind) { return kind == Kind::int4 ? 1024 : kind == Kind::int8 ? 2048 : 4096; }

// Tiles of a line, and lines of a run.
constexpr int64_t line_tiles(Kind kind) { return kind == Kind::int4 ? 2 : 1; }
constexpr int64_t lines(Kind kind) { return RUN / tile_columns(kind) / line_tiles(kind) * PARTS; }

// The number of tile `i` of a line.
constexpr int64_t tile_of(Kind kind, int64_t line, int64_t i) {
    return (line / PARTS * line_tiles(kind) + i) * PARTS + line % PARTS;
}

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

// `for_each` for a row in tiles.
template <typename Visit> void for_each_tiled(const Matrix& weight, int64_t index, Visit visit) {
    const Kind kind = weight.kind;
    const int64_t block = index / BLOCK_ROWS, part = index / TILE_ROWS % PARTS;
    const int64_t first = index % TILE_ROWS * tile_columns(kind);
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
