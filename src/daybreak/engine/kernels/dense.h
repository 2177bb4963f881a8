// Products of weights in float32 or bfloat16, as PyTorch keeps them: [outputs, inputs], a row after the other.
//
// Every sum runs over the inputs in the same order whatever the number of tokens, so that the results of a token do
// not depend on those beside it. Sums are float32.
#pragma once

#include <algorithm>
#include <cstdint>

#include "matrix.h"
#include "vectors.h"

namespace daybreak {

constexpr int ROWS_OF_TILE = 4;
constexpr int TOKENS_OF_TILE = LANES == 16 ? 6 : 3;  // as many sums as there are registers for
constexpr int64_t STRETCH = 1024;                    // inputs at a time: a tile's rows stay in the first cache
constexpr int64_t TOGETHER = 384 << 10;              // bytes of tokens that are read again for each tile: half a second cache
constexpr int64_t MOST = 240;                        // tokens of such a part

template <class Element, int R, int T>
inline void tile(const Element* weights, const float* inputs, int64_t width, int64_t begin, int64_t end, Vector* sums) {
    Vector own[R][T];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) own[r][t] = sums[r * T + t];
    int64_t i = begin;
    for (; i + LANES <= end; i += LANES) {
        Vector values[T];
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) values[t] = held(load(inputs + t * width + i));
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const Element* place = weights + r * width + i;
            // The rows that come next; far enough ahead for the memory, and nothing where it is beyond the end.
            if (T == 1) __builtin_prefetch(place + R * width);
            const Vector weight = held(load(place));
#pragma GCC unroll 8
            for (int t = 0; t < T; t++) own[r][t] = fused(weight, values[t], own[r][t]);
        }
    }
    if (i < end) {
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
            const Vector values = load(inputs + t * width + i, end - i);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) own[r][t] = fused(load(weights + r * width + i, end - i), values, own[r][t]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) sums[r * T + t] = own[r][t];
}

// R rows from `row` on, for some tokens.
template <class Element, int R>
inline void rows_of(const Matrix& matrix, int64_t row, const float* inputs, int64_t tokens, float* results) {
    const int64_t width = matrix.inputs;
    const Element* weights = static_cast<const Element*>(matrix.weights) + row * width;
    Vector sums[R * MOST];
    for (int64_t each = 0; each < R * tokens; each++) sums[each] = Vector{};
    for (int64_t begin = 0; begin < width; begin += STRETCH) {
        const int64_t end = std::min(width, begin + STRETCH);
        int64_t token = 0;
        for (; token + TOKENS_OF_TILE <= tokens; token += TOKENS_OF_TILE)
            tile<Element, R, TOKENS_OF_TILE>(weights, inputs + token * width, width, begin, end, sums + R * token);
        for (; token < tokens; token++)
            tile<Element, R, 1>(weights, inputs + token * width, width, begin, end, sums + R * token);
    }
    const int64_t tiled = tokens / TOKENS_OF_TILE * TOKENS_OF_TILE;
    for (int64_t token = 0; token < tokens; token++) {
        const int64_t first = token < tiled ? token / TOKENS_OF_TILE * TOKENS_OF_TILE : token;
        const int64_t wide = token < tiled ? TOKENS_OF_TILE : 1;
        for (int r = 0; r < R; r++) {
            const float bias = matrix.bias ? matrix.bias[row + r] : 0.0f;
            results[token * matrix.outputs + row + r] = sum(sums[R * first + r * wide + (token - first)]) + bias;
        }
    }
}

// results [tokens, outputs]; called by every thread of a team, which do not wait for each other.
template <class Element>
void multiply_dense(const Matrix& matrix, const float* inputs, int64_t tokens, float* results) {
    const int64_t fit = TOGETHER / (int64_t)(sizeof(float) * matrix.inputs) / TOKENS_OF_TILE * TOKENS_OF_TILE;
    const int64_t part = std::max<int64_t>(TOKENS_OF_TILE, std::min(MOST, fit));
    const int64_t panels = (matrix.outputs + ROWS_OF_TILE - 1) / ROWS_OF_TILE;
    for (int64_t first = 0; first < tokens; first += part) {
        const int64_t count = std::min(part, tokens - first);
        const float* own = inputs + first * matrix.inputs;
        float* found = results + first * matrix.outputs;
#pragma omp for schedule(static) nowait
        for (int64_t panel = 0; panel < panels; panel++) {
            int64_t row = panel * ROWS_OF_TILE;
            if (row + ROWS_OF_TILE <= matrix.outputs) {
                rows_of<Element, ROWS_OF_TILE>(matrix, row, own, count, found);
            } else {
                for (; row < matrix.outputs; row++) rows_of<Element, 1>(matrix, row, own, count, found);
            }
        }
    }
}

}  // namespace daybreak
