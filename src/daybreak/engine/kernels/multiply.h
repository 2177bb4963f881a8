// A linear map of any kind for the tokens of a step.
#pragma once

#include "dense.h"
#include "quantised.h"

namespace daybreak {

// What the matrices of one input share.
struct Input {
    const float* values;  // [tokens, width]
    int64_t tokens, width;
    const Rounded* rounded;  // where the matrices want that
};

inline void multiply(const Matrix& matrix, const Input& input, float* results) {
    switch (matrix.kind) {
        case FLOATS: return multiply_dense<Singles<float>>(matrix, input.values, input.tokens, results);
        case BFLOATS:
#if defined(__AVX512BF16__)
            return multiply_dense<Pairs>(matrix, input.rounded->halves.data(), input.tokens, results);
#else
            return multiply_dense<Singles<uint16_t>>(matrix, input.values, input.tokens, results);
#endif
        case EIGHTS: return multiply_quantised<8>(matrix, *input.rounded, input.tokens, results);
        case NIBBLES: return multiply_quantised<4>(matrix, *input.rounded, input.tokens, results);
        default: return;
    }
}

}  // namespace daybreak
