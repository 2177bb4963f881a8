// A linear map of the model, and how its weights lie.
#pragma once

#include <cstdint>

namespace daybreak {

enum Kind : int64_t { NONE = 0, FLOATS = 1, BFLOATS = 2, EIGHTS = 8, NIBBLES = 4 };

struct Matrix {
    int64_t kind;
    const void* weights;  // of numbers with a point [outputs, inputs]; otherwise packed, see quantised.h
    const float* scales;
    const float* zeros;
    const float* bias;  // [outputs] or null
    int64_t outputs, inputs;
    int64_t group;    // inputs that share a scale of the activations
    int64_t per_row;  // weights have one scale for all groups of a row

    bool quantised() const { return kind == EIGHTS || kind == NIBBLES; }
};

}  // namespace daybreak
