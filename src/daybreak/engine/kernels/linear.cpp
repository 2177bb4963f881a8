// One linear map for some tokens.

#include "multiply.h"

using namespace daybreak;

extern "C" {

const char* instructions() { return NAME; }

// results [tokens, outputs] = inputs [tokens, inputs] times the weights' transpose, plus bias.
void linear(const Matrix* matrix, const float* inputs, int64_t tokens, float* results, int64_t threads) {
    static thread_local Rounded own;
    Rounded& rounded = own;
    rounded.size_for(*matrix, tokens);
#pragma omp parallel num_threads(threads)
    {
        if (rounds(*matrix)) {
#pragma omp for schedule(static)
            for (int64_t token = 0; token < tokens; token++) round_token(*matrix, inputs, token, rounded);
        }
        multiply(*matrix, {inputs, tokens, matrix->inputs, &rounded}, results);
    }
}
}
