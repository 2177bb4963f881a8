// Products of quantised weights with the activations of a few tokens or many.
//
// Weights are unsigned numbers of 8 or 4 bits with a scale, and perhaps a zero point, for each row and group of
// inputs. They are packed so that a core reads one stream and never adds across a register: blocks of 16 rows,
// and of each block 4 inputs of all rows after 4 inputs of all rows. With 4 bits a byte has an input of one
// four in its low half and the same place of the next four in its high half.
//
// Activations are rounded to 8 bits on the fly, with a scale for each token and group; products and sums are
// exact integers. What a compiler makes of -march=native decides which instructions do them.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__AVX512VNNI__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#include "matrix.h"
#include "rounded.h"
#include "vectors.h"

namespace daybreak {

constexpr int ROWS = 16;  // of a block
constexpr int FOUR = 4;   // inputs that stand together
constexpr int64_t AHEAD = 1024;  // bytes of weights that are asked for early, where they come out of the memory
constexpr int64_t NEAR = 192 << 10;  // bytes of tokens that are read again for each block: they stay in a near cache

constexpr int PARTS = ROWS / LANES;  // registers that hold a number for each row

// `Sums`: 16 sums of products, one for each row, and `part` of them. `Four`: 4 inputs of 16 rows, ready to be multiplied.
// OFFSET: what was subtracted from the weights before they were multiplied. `begin_at`: all sums at a number.

#if defined(__AVX512VNNI__)

constexpr const char* NAME = "AVX-512 VNNI";
constexpr int TOKENS = 8;
constexpr int OFFSET_8 = 0, OFFSET_4 = 0;
struct Sums { __m512i all = _mm512_setzero_si512(); };
struct Four { __m512i all; };

inline Four eights(const uint8_t* weights) { return {_mm512_loadu_si512(weights)}; }
inline void nibbles(const uint8_t* weights, Four& low, Four& high) {
    const __m512i bytes = _mm512_loadu_si512(weights), mask = _mm512_set1_epi8(15);
    low.all = _mm512_and_si512(bytes, mask);
    high.all = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), mask);
}
inline Sums begin_at(int32_t number) { return {_mm512_set1_epi32(number)}; }
// Of the intrinsic for this, GCC 12 makes copies of the sums and keeps some of them on the stack: half the speed.
inline void add_8(Sums& sums, const Four& weights, const int8_t* inputs) {
    const auto& four = *reinterpret_cast<const int8_t(*)[FOUR]>(inputs);
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sums.all) : "v"(weights.all), "m"(four));
}
inline void add_4(Sums& sums, const Four& low, const Four& high, const int8_t* inputs) {
    add_8(sums, low, inputs);
    add_8(sums, high, inputs + FOUR);
}
inline Whole part(const Sums& sums, int) { return (Whole)sums.all; }

#elif defined(__AVX2__)

constexpr const char* NAME = "AVX2";
constexpr int TOKENS = 4;
constexpr int OFFSET_8 = 128, OFFSET_4 = 0;
struct Sums { __m256i low = _mm256_setzero_si256(), high = _mm256_setzero_si256(); };
struct Four { __m256i low, high, low_sizes, high_sizes; };

inline Sums begin_at(int32_t number) { return {_mm256_set1_epi32(number), _mm256_set1_epi32(number)}; }

inline __m256i load(const uint8_t* place) { return _mm256_loadu_si256((const __m256i*)place); }
inline Four eights(const uint8_t* weights) {
    const __m256i middle = _mm256_set1_epi8((char)128);
    const __m256i low = _mm256_xor_si256(load(weights), middle), high = _mm256_xor_si256(load(weights + 32), middle);
    return {low, high, _mm256_abs_epi8(low), _mm256_abs_epi8(high)};
}
inline void nibbles(const uint8_t* weights, Four& low, Four& high) {
    const __m256i mask = _mm256_set1_epi8(15), first = load(weights), second = load(weights + 32);
    low.low = _mm256_and_si256(first, mask), low.high = _mm256_and_si256(second, mask);
    high.low = _mm256_and_si256(_mm256_srli_epi16(first, 4), mask);
    high.high = _mm256_and_si256(_mm256_srli_epi16(second, 4), mask);
}
inline __m256i broadcast(const int8_t* inputs) {
    int32_t four;
    std::memcpy(&four, inputs, 4);
    return _mm256_set1_epi32(four);
}
inline void add(__m256i& sums, __m256i pairs) {
    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
// Pairs of products are added in 16 bits. Neither factor is -128, so that two of them fit: 2 * 127 * 127 < 2^15.
inline void add_8(Sums& sums, const Four& weights, const int8_t* inputs) {
    const __m256i four = broadcast(inputs);
    add(sums.low, _mm256_maddubs_epi16(weights.low_sizes, _mm256_sign_epi8(four, weights.low)));
    add(sums.high, _mm256_maddubs_epi16(weights.high_sizes, _mm256_sign_epi8(four, weights.high)));
}
inline void add_4(Sums& sums, const Four& low, const Four& high, const int8_t* inputs) {
    const __m256i first = broadcast(inputs), second = broadcast(inputs + FOUR);
    add(sums.low, _mm256_add_epi16(_mm256_maddubs_epi16(low.low, first), _mm256_maddubs_epi16(high.low, second)));
    add(sums.high, _mm256_add_epi16(_mm256_maddubs_epi16(low.high, first), _mm256_maddubs_epi16(high.high, second)));
}
inline Whole part(const Sums& sums, int number) { return (Whole)(number ? sums.high : sums.low); }

#elif defined(__ARM_FEATURE_DOTPROD)

constexpr const char* NAME = "NEON dot products";
constexpr int TOKENS = 4;
constexpr int OFFSET_8 = 128, OFFSET_4 = 0;
struct Sums { int32x4_t all[4] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)}; };
struct Four { int8x16_t all[4]; };

inline Sums begin_at(int32_t number) {
    const int32x4_t four = vdupq_n_s32(number);
    return {{four, four, four, four}};
}

inline Four eights(const uint8_t* weights) {
    Four four;
    for (int part = 0; part < 4; part++)
        four.all[part] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(weights + 16 * part), vdupq_n_u8(128)));
    return four;
}
inline void nibbles(const uint8_t* weights, Four& low, Four& high) {
    for (int part = 0; part < 4; part++) {
        const uint8x16_t bytes = vld1q_u8(weights + 16 * part);
        low.all[part] = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
        high.all[part] = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4));
    }
}
inline void add_8(Sums& sums, const Four& weights, const int8_t* inputs) {
    int32_t four;
    std::memcpy(&four, inputs, 4);
    const int8x16_t all = vreinterpretq_s8_s32(vdupq_n_s32(four));
    for (int part = 0; part < 4; part++) sums.all[part] = vdotq_s32(sums.all[part], weights.all[part], all);
}
inline void add_4(Sums& sums, const Four& low, const Four& high, const int8_t* inputs) {
    add_8(sums, low, inputs);
    add_8(sums, high, inputs + FOUR);
}
inline Whole part(const Sums& sums, int number) { return (Whole)sums.all[number]; }

#else

constexpr const char* NAME = "plain C++";
constexpr int TOKENS = 4;
constexpr int OFFSET_8 = 0, OFFSET_4 = 0;
struct Sums { int32_t all[ROWS] = {}; };
struct Four { uint8_t all[ROWS * FOUR]; };

inline Sums begin_at(int32_t number) {
    Sums sums;
    std::fill(sums.all, sums.all + ROWS, number);
    return sums;
}

inline Four eights(const uint8_t* weights) {
    Four four;
    std::memcpy(four.all, weights, sizeof four.all);
    return four;
}
inline void nibbles(const uint8_t* weights, Four& low, Four& high) {
    for (int place = 0; place < ROWS * FOUR; place++) {
        low.all[place] = weights[place] & 15;
        high.all[place] = weights[place] >> 4;
    }
}
inline void add_8(Sums& sums, const Four& weights, const int8_t* inputs) {
    for (int row = 0; row < ROWS; row++)
        for (int input = 0; input < FOUR; input++) sums.all[row] += weights.all[FOUR * row + input] * inputs[input];
}
inline void add_4(Sums& sums, const Four& low, const Four& high, const int8_t* inputs) {
    add_8(sums, low, inputs);
    add_8(sums, high, inputs + FOUR);
}
inline Whole part(const Sums& sums, int number) {
    Whole found;
    std::memcpy(&found, sums.all + number * LANES, sizeof found);
    return found;
}

#endif

// One block of rows for T tokens, from `token` on; the weights `ahead` bytes further are asked for on the way.
template <int T, int BITS>
void block_of(const Matrix& matrix, int64_t block, const Rounded& rounded, int64_t token, int64_t ahead, float* results) {
    const int64_t groups = rounded.groups, group = rounded.group, padded = groups * group;
    const int64_t scale_rows = matrix.per_row ? 1 : groups;
    const uint8_t* weights = static_cast<const uint8_t*>(matrix.weights) + block * (ROWS * padded * BITS / 8);
    const float* own_scales = matrix.scales + block * scale_rows * ROWS;
    const float* own_zeros = matrix.zeros ? matrix.zeros + block * scale_rows * ROWS : nullptr;
    const int8_t* numbers = rounded.numbers.data() + token * padded;
    const float* scales = rounded.scales.data() + token * groups;
    const int32_t* sums = rounded.sums.data() + token * groups;
    // What stands for 0 is taken off with the sum of the inputs: before, as a whole number, where it is one for all.
    constexpr int offset = BITS == 8 ? OFFSET_8 : OFFSET_4, middle = (BITS == 8 ? 128 : 8) - offset;
    Vector found[T][PARTS] = {};
    for (int64_t g = 0; g < groups; g++) {
        Sums all[T];
        const int8_t* inputs = numbers + g * group;
        for (int t = 0; t < T; t++) all[t] = begin_at(own_zeros ? 0 : -middle * sums[t * groups + g]);
        if (BITS == 8) {
#pragma GCC unroll 4
            for (int64_t i = 0; i < group; i += FOUR, weights += ROWS * FOUR) {
                __builtin_prefetch(weights + ahead, 0, 2);
                const Four four = eights(weights);
#pragma GCC unroll 8
                for (int t = 0; t < T; t++) add_8(all[t], four, inputs + t * padded + i);
            }
        } else {
#pragma GCC unroll 2
            for (int64_t i = 0; i < group; i += 2 * FOUR, weights += ROWS * FOUR) {
                Four low, high;
                __builtin_prefetch(weights + ahead, 0, 2);
                nibbles(weights, low, high);
#pragma GCC unroll 8
                for (int t = 0; t < T; t++) add_4(all[t], low, high, inputs + t * padded + i);
            }
        }
        const int64_t place = matrix.per_row ? 0 : g * ROWS;
        for (int p = 0; p < PARTS; p++) {
            const Vector step = load(own_scales + place + p * LANES);
            const Vector zero = own_zeros ? load(own_zeros + place + p * LANES) - (float)offset : Vector{};
            for (int t = 0; t < T; t++) {
                Vector exact = __builtin_convertvector(part(all[t], p), Vector);
                const Vector scale = daybreak::all(scales[t * groups + g]);
                if (own_zeros) exact -= zero * (float)sums[t * groups + g];
                found[t][p] = fused(exact, matrix.per_row ? scale : step * scale, found[t][p]);
            }
        }
    }
    const int64_t first = block * ROWS, rows = std::min<int64_t>(ROWS, matrix.outputs - first);
    for (int t = 0; t < T; t++) {
        float* own = results + (token + t) * matrix.outputs + first;
        for (int p = 0; p < PARTS; p++) {
            const int64_t left = rows - p * LANES;
            if (left <= 0) break;
            const Vector bias = matrix.bias ? load(matrix.bias + first + p * LANES, left) : Vector{};
            const Vector scaled = matrix.per_row ? found[t][p] * load(own_scales + p * LANES) : found[t][p];
            store(own + p * LANES, scaled + bias, left);
        }
    }
}

// results [tokens, outputs]; called by every thread of a team, which do not wait for each other.
template <int BITS>
void multiply_quantised(const Matrix& matrix, const Rounded& rounded, int64_t tokens, float* results) {
    const int64_t blocks = (matrix.outputs + ROWS - 1) / ROWS, padded = rounded.groups * rounded.group;
    const int64_t stretch = std::max<int64_t>(TOKENS, NEAR / padded / TOKENS * TOKENS);
    for (int64_t begin = 0; begin < tokens; begin += stretch) {
        const int64_t end = std::min(tokens, begin + stretch), bytes = ROWS * padded * BITS / 8;
#pragma omp for schedule(static) nowait
        for (int64_t block = 0; block < blocks; block++) {
            // The first tokens find the weights in memory; while the last ones are multiplied, the next block comes.
            const auto ahead = [&](int64_t token, int64_t count) {
                return token > begin && token + count == end ? bytes : AHEAD;
            };
            int64_t token = begin;
            for (; token + TOKENS <= end; token += TOKENS)
                block_of<TOKENS, BITS>(matrix, block, rounded, token, ahead(token, TOKENS), results);
            for (; token + 2 <= end; token += 2)
                block_of<2, BITS>(matrix, block, rounded, token, ahead(token, 2), results);
            for (; token < end; token++) block_of<1, BITS>(matrix, block, rounded, token, ahead(token, 1), results);
        }
    }
}

}  // namespace daybreak
