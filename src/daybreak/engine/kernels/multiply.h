// A linear map of any kind for the tokens of a step.
#pragma once

#include "dense.h"
#include "quantised.h"

namespace daybreak {

// What the matrices of one input share.
struct Input {
    const float* values;  // [tokens, width]
    int64_t tokens, width;
    const Rounded* rounded;  // where they are quantised
};

inline void multiply(const Matrix& matrix, const Input& input, float* results) {
    switch (matrix.kind) {
        case FLOATS: return multiply_dense<float>(matrix, input.values, input.tokens, results);
        case BFLOATS: return multiply_dense<uint16_t>(matrix, input.values, input.tokens, results);
        case EIGHTS: return multiply_quantised<8>(matrix, *input.rounded, input.tokens, results);
        case NIBBLES: return multiply_quantised<4>(matrix, *input.rounded, input.tokens, results);
        default: return;
    }
}

}  // namespace daybreak
