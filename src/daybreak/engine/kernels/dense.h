// Products of weights in float32 or bfloat16, as PyTorch keeps them: [outputs, inputs], a row after the other.
//
// Every sum runs over the inputs in the same order whatever the number of tokens, so that the results of a token do
// not depend on those beside it. Sums are float32.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "matrix.h"
#include "vectors.h"

namespace daybreak {

constexpr int ROWS_OF_TILE = 4;
constexpr int TOKENS_OF_TILE = LANES == 16 ? 6 : 3;  // as many sums as there are registers for
constexpr int64_t STRETCH = 1024;                    // inputs at a time: a tile's rows stay in the first cache
constexpr int64_t TOGETHER = 384 << 10;              // bytes of tokens that are read again for each tile: half a second cache
constexpr int64_t MOST = 240;                        // tokens of such a part

// How numbers are multiplied: each weight, widened, with an input in float32 ..
template <class Stored>
struct Singles {
    typedef Stored Element;
    typedef float Input;
    typedef Vector Register;
    static constexpr int STEP = LANES;  // inputs of a register

    static Register input(const Input* place) { return load(place); }
    static Register weight(const Element* place) { return load(place); }
    static Register input(const Input* place, int64_t count) { return load(place, count); }
    static Register weight(const Element* place, int64_t count) { return load(place, count); }
    static Vector add(Register weight, Register input, Vector sum) { return fused(weight, input, sum); }
};

#if defined(__AVX512BF16__)
// .. or pairs of bfloat16, whose exact products are added to a sum in float32.
struct Pairs {
    typedef uint16_t Element;
    typedef uint16_t Input;
    typedef Vector Register;  // of 32 numbers
    static constexpr int STEP = 2 * LANES;

    static Register input(const Input* place) {
        Register found;
        std::memcpy(&found, place, sizeof found);
        return found;
    }
    static Register input(const Input* place, int64_t count) {
        uint16_t some[STEP] = {};
        std::memcpy(some, place, std::min<int64_t>(STEP, count) * sizeof(Input));
        return input(some);
    }
    static Register weight(const Element* place) { return input(place); }
    static Register weight(const Element* place, int64_t count) { return input(place, count); }
    static Vector add(Register weight, Register input, Vector sum) {
        asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(weight), "v"(input));
        return sum;
    }
};
#endif

template <class Way, int R, int T>
inline void tile(const typename Way::Element* weights, const typename Way::Input* inputs, int64_t width, int64_t begin,
                 int64_t end, Vector* sums) {
    Vector own[R][T];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) own[r][t] = sums[r * T + t];
    int64_t i = begin;
    for (; i + Way::STEP <= end; i += Way::STEP) {
        typename Way::Register values[T];
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) values[t] = held(Way::input(inputs + t * width + i));
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const typename Way::Element* place = weights + r * width + i;
            // The rows that come next; far enough ahead for the memory, and nothing where it is beyond the end.
            if (T == 1) __builtin_prefetch(place + R * width);
            const typename Way::Register weight = held(Way::weight(place));
#pragma GCC unroll 8
            for (int t = 0; t < T; t++) own[r][t] = Way::add(weight, values[t], own[r][t]);
        }
    }
    if (i < end) {
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
            const typename Way::Register values = Way::input(inputs + t * width + i, end - i);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
                own[r][t] = Way::add(Way::weight(weights + r * width + i, end - i), values, own[r][t]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) sums[r * T + t] = own[r][t];
}

// R rows from `row` on, for some tokens.
template <class Way, int R>
inline void rows_of(const Matrix& matrix, int64_t row, const typename Way::Input* inputs, int64_t tokens, float* results) {
    const int64_t width = matrix.inputs;
    const auto* weights = static_cast<const typename Way::Element*>(matrix.weights) + row * width;
    Vector sums[R * MOST];
    for (int64_t each = 0; each < R * tokens; each++) sums[each] = Vector{};
    for (int64_t begin = 0; begin < width; begin += STRETCH) {
        const int64_t end = std::min(width, begin + STRETCH);
        int64_t token = 0;
        for (; token + TOKENS_OF_TILE <= tokens; token += TOKENS_OF_TILE)
            tile<Way, R, TOKENS_OF_TILE>(weights, inputs + token * width, width, begin, end, sums + R * token);
        for (; token < tokens; token++)
            tile<Way, R, 1>(weights, inputs + token * width, width, begin, end, sums + R * token);
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
template <class Way>
void multiply_dense(const Matrix& matrix, const typename Way::Input* inputs, int64_t tokens, float* results) {
    const int64_t fit = TOGETHER / (int64_t)(sizeof(typename Way::Input) * matrix.inputs) / TOKENS_OF_TILE * TOKENS_OF_TILE;
    const int64_t part = std::max<int64_t>(TOKENS_OF_TILE, std::min(MOST, fit));
    const int64_t panels = (matrix.outputs + ROWS_OF_TILE - 1) / ROWS_OF_TILE;
    for (int64_t first = 0; first < tokens; first += part) {
        const int64_t count = std::min(part, tokens - first);
        const auto* own = inputs + first * matrix.inputs;
        float* found = results + first * matrix.outputs;
#pragma omp for schedule(static) nowait
        for (int64_t panel = 0; panel < panels; panel++) {
            int64_t row = panel * ROWS_OF_TILE;
            if (row + ROWS_OF_TILE <= matrix.outputs) {
                rows_of<Way, ROWS_OF_TILE>(matrix, row, own, count, found);
            } else {
                for (; row < matrix.outputs; row++) rows_of<Way, 1>(matrix, row, own, count, found);
            }
        }
    }
}

}  // namespace daybreak
