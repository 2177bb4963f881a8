// Activations, rounded to what the products with a matrix read: 8 bits for weights of few bits, bfloat16 for weights in
// bfloat16 where the processor multiplies it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "matrix.h"
#include "vectors.h"

namespace daybreak {

#if defined(__AVX512BF16__)
constexpr bool MULTIPLIES_HALVES = true;
#else
constexpr bool MULTIPLIES_HALVES = false;
#endif

inline bool rounds(const Matrix& matrix) { return matrix.quantised() || (MULTIPLIES_HALVES && matrix.kind == BFLOATS); }

// Of some tokens: in 8 bits [tokens, inputs] with their scales and sums [tokens, groups], or in bfloat16 [tokens, inputs].
struct Rounded {
    std::vector<int8_t> numbers;
    std::vector<float> scales;
    std::vector<int32_t> sums;
    std::vector<uint16_t> halves;
    int64_t width = 0, group = 0, groups = 0;

    void size_for(const Matrix& matrix, int64_t tokens) {
        if (!rounds(matrix)) return;
        width = matrix.inputs;
        if (!matrix.quantised()) {
            halves.resize(tokens * width);
            return;
        }
        group = matrix.group, groups = (width + group - 1) / group;
        numbers.resize(tokens * groups * group);
        scales.resize(tokens * groups);
        sums.resize(tokens * groups);
    }
};

// One group of a token; what is beyond its end becomes 0. A scale that is not finite says that an input was not.
inline void round_group(const float* inputs, int64_t count, int64_t group, int8_t* numbers, float& scale, int32_t& total) {
    Vector most = {}, poison = {};
    for (int64_t i = 0; i < count; i += LANES) {
        const Vector values = load(inputs + i, count - i);
        most = larger(size(values), most);
        poison += values * 0.0f;
    }
    const float top = largest(most);
    const float factor = top > 0 ? 127.0f / top : 0.0f;
    scale = top / 127.0f + sum(poison);
    typedef int8_t Bytes __attribute__((vector_size(LANES)));
    Whole sums = {};
    for (int64_t i = 0; i < group; i += LANES) {
        const Vector values = i + LANES <= count ? load(inputs + i) : (i < count ? load(inputs + i, count - i) : Vector{});
        const Whole rounded = __builtin_convertvector(nearest(values * factor), Whole);
        const Bytes bytes = __builtin_convertvector(rounded, Bytes);
        std::memcpy(numbers + i, &bytes, LANES);
        sums += rounded;
    }
    total = sum(sums);
}

inline void round_to_halves(const float* inputs, int64_t count, uint16_t* halves) {
#if defined(__AVX512BF16__)
    for (int64_t i = 0; i < count; i += LANES) {
        const __m256bh found = _mm512_cvtneps_pbh((__m512)load(inputs + i, count - i));
        std::memcpy(halves + i, &found, std::min<int64_t>(LANES, count - i) * sizeof(uint16_t));
    }
#endif
}

// One token of [tokens, inputs].
inline void round_token(const Matrix& matrix, const float* values, int64_t token, Rounded& rounded) {
    const float* inputs = values + token * matrix.inputs;
    if (!rounds(matrix)) return;
    if (!matrix.quantised()) return round_to_halves(inputs, rounded.width, rounded.halves.data() + token * rounded.width);
    const int64_t padded = rounded.groups * rounded.group;
    for (int64_t g = 0; g < rounded.groups; g++) {
        const int64_t begin = g * rounded.group, each = token * rounded.groups + g;
        round_group(inputs + begin, std::min(rounded.group, rounded.width - begin), rounded.group,
                    rounded.numbers.data() + token * padded + begin, rounded.scales[each], rounded.sums[each]);
    }
}

}  // namespace daybreak
