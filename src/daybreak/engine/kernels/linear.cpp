// Products of quantised weights with the activations of a few tokens or many: what decoding spends its time on.
//
// Weights are unsigned numbers of 8 or 4 bits with a scale, and perhaps a zero point, for each row and group of
// inputs. They are packed so that a core reads one stream and never adds across a register: blocks of 16 rows,
// and of each block 4 inputs of all rows after 4 inputs of all rows. With 4 bits a byte has an input of one
// four in its low half and the same place of the next four in its high half.
//
// Activations are rounded to 8 bits on the fly, with a scale for each token and group; products and sums are
// exact integers. What a compiler makes of -march=native decides which instructions do them.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX512VNNI__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace {

constexpr int ROWS = 16;  // of a block
constexpr int FOUR = 4;   // inputs that stand together

typedef float Floats __attribute__((vector_size(4 * ROWS)));
typedef int32_t Ints __attribute__((vector_size(4 * ROWS)));

// `Sums`: 16 sums of products, one for each row. `Eights` and `Nibbles`: 4 inputs of 16 rows, ready to be multiplied.
// OFFSET: what was subtracted from the weights before they were multiplied.

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
inline __m512i broadcast(const int8_t* inputs) {
    int32_t four;
    std::memcpy(&four, inputs, 4);
    return _mm512_set1_epi32(four);
}
inline void add_8(Sums& sums, const Four& weights, const int8_t* inputs) {
    sums.all = _mm512_dpbusd_epi32(sums.all, weights.all, broadcast(inputs));
}
inline void add_4(Sums& sums, const Four& low, const Four& high, const int8_t* inputs) {
    sums.all = _mm512_dpbusd_epi32(sums.all, low.all, broadcast(inputs));
    sums.all = _mm512_dpbusd_epi32(sums.all, high.all, broadcast(inputs + FOUR));
}
inline Ints whole(const Sums& sums) { return (Ints)sums.all; }

#elif defined(__AVX2__)

constexpr const char* NAME = "AVX2";
constexpr int TOKENS = 4;
constexpr int OFFSET_8 = 128, OFFSET_4 = 0;
struct Sums { __m256i low = _mm256_setzero_si256(), high = _mm256_setzero_si256(); };
struct Four { __m256i low, high; };

inline __m256i load(const uint8_t* place) { return _mm256_loadu_si256((const __m256i*)place); }
inline Four eights(const uint8_t* weights) {
    const __m256i middle = _mm256_set1_epi8((char)128);
    return {_mm256_xor_si256(load(weights), middle), _mm256_xor_si256(load(weights + 32), middle)};
}
inline void nibbles(const uint8_t* weights, Four& low, Four& high) {
    const __m256i mask = _mm256_set1_epi8(15), first = load(weights), second = load(weights + 32);
    low = {_mm256_and_si256(first, mask), _mm256_and_si256(second, mask)};
    high = {_mm256_and_si256(_mm256_srli_epi16(first, 4), mask), _mm256_and_si256(_mm256_srli_epi16(second, 4), mask)};
}
inline __m256i broadcast(const int8_t* inputs) {
    int32_t four;
    std::memcpy(&four, inputs, 4);
    return _mm256_set1_epi32(four);
}
// Pairs of products are added in 16 bits. Neither factor is -128, so that two of them fit: 2 * 127 * 127 < 2^15.
inline __m256i pairs(__m256i weights, __m256i inputs, __m256i sizes) {
    return _mm256_maddubs_epi16(sizes, _mm256_sign_epi8(weights, inputs));
}
inline void add_8(Sums& sums, const Four& weights, const int8_t* inputs) {
    const __m256i four = broadcast(inputs), sizes = _mm256_abs_epi8(four), one = _mm256_set1_epi16(1);
    sums.low = _mm256_add_epi32(sums.low, _mm256_madd_epi16(pairs(weights.low, four, sizes), one));
    sums.high = _mm256_add_epi32(sums.high, _mm256_madd_epi16(pairs(weights.high, four, sizes), one));
}
inline void add_4(Sums& sums, const Four& low, const Four& high, const int8_t* inputs) {
    const __m256i first = broadcast(inputs), second = broadcast(inputs + FOUR), one = _mm256_set1_epi16(1);
    const __m256i upper = _mm256_add_epi16(_mm256_maddubs_epi16(low.low, first), _mm256_maddubs_epi16(high.low, second));
    const __m256i lower = _mm256_add_epi16(_mm256_maddubs_epi16(low.high, first), _mm256_maddubs_epi16(high.high, second));
    sums.low = _mm256_add_epi32(sums.low, _mm256_madd_epi16(upper, one));
    sums.high = _mm256_add_epi32(sums.high, _mm256_madd_epi16(lower, one));
}
inline Ints whole(const Sums& sums) {
    Ints result;
    std::memcpy(&result, &sums, sizeof result);
    return result;
}

#elif defined(__ARM_FEATURE_DOTPROD)

constexpr const char* NAME = "NEON dot products";
constexpr int TOKENS = 4;
constexpr int OFFSET_8 = 128, OFFSET_4 = 0;
struct Sums { int32x4_t all[4] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)}; };
struct Four { int8x16_t all[4]; };

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
inline Ints whole(const Sums& sums) {
    Ints result;
    std::memcpy(&result, &sums, sizeof result);
    return result;
}

#else

constexpr const char* NAME = "plain C++";
constexpr int TOKENS = 4;
constexpr int OFFSET_8 = 0, OFFSET_4 = 0;
struct Sums { Ints all = {}; };
struct Four { uint8_t all[ROWS * FOUR]; };

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
inline Ints whole(const Sums& sums) { return sums.all; }

#endif

// Activations of all tokens, rounded: [tokens, inputs] with their scales and sums [tokens, groups].
struct Rounded {
    std::vector<int8_t> numbers;
    std::vector<float> scales;
    std::vector<int32_t> sums;
};

void round_group(const float* inputs, int64_t count, int64_t group, int8_t* numbers, float& scale, int32_t& sum) {
    float largest = 0;
    for (int64_t i = 0; i < count; i++) largest = std::max(largest, std::fabs(inputs[i]));
    const float factor = largest > 0 ? 127.0f / largest : 0.0f;
    scale = largest / 127.0f;
    int32_t total = 0;
    for (int64_t i = 0; i < count; i++) {
        const int number = (int)std::nearbyint(inputs[i] * factor);
        numbers[i] = (int8_t)number;
        total += number;
    }
    std::fill(numbers + count, numbers + group, 0);
    sum = total;
}

struct Layer {
    const uint8_t* weights;  // [blocks, inputs / 4, 16 rows, 4], padded inputs
    const float* scales;     // [blocks, groups or 1, 16]
    const float* zeros;      // alike, or null: in the middle
    const float* bias;       // [outputs] or null
    int64_t outputs, inputs, group, groups, bits;
    bool per_row;            // one scale for all groups of a row
};

// One block of rows for T tokens.
template <int T, int BITS>
void block_of(const Layer& layer, int64_t block, const int8_t* numbers, const float* scales, const int32_t* sums,
              float* results) {
    const int64_t padded = layer.groups * layer.group;
    const int64_t bytes = ROWS * padded * BITS / 8, scale_rows = layer.per_row ? 1 : layer.groups;
    const uint8_t* weights = layer.weights + block * bytes;
    const float* own_scales = layer.scales + block * scale_rows * ROWS;
    const float* own_zeros = layer.zeros ? layer.zeros + block * scale_rows * ROWS : nullptr;
    constexpr int offset = BITS == 8 ? OFFSET_8 : OFFSET_4;
    Floats found[T] = {};
    for (int64_t g = 0; g < layer.groups; g++) {
        Sums all[T];
        const int8_t* inputs = numbers + g * layer.group;
        if (BITS == 8) {
            for (int64_t i = 0; i < layer.group; i += FOUR, weights += ROWS * FOUR) {
                const Four four = eights(weights);
                for (int t = 0; t < T; t++) add_8(all[t], four, inputs + t * padded + i);
            }
        } else {
            for (int64_t i = 0; i < layer.group; i += 2 * FOUR, weights += ROWS * FOUR) {
                Four low, high;
                nibbles(weights, low, high);
                for (int t = 0; t < T; t++) add_4(all[t], low, high, inputs + t * padded + i);
            }
        }
        const int64_t place = layer.per_row ? 0 : g;
        Floats size, zero;
        std::memcpy(&size, own_scales + place * ROWS, sizeof size);
        if (own_zeros) std::memcpy(&zero, own_zeros + place * ROWS, sizeof zero);
        else zero = Floats{} + (BITS == 8 ? 128.0f : 8.0f);
        zero -= (float)offset;
        for (int t = 0; t < T; t++) {
            const float sum = (float)sums[t * layer.groups + g];
            const Floats exact = __builtin_convertvector(whole(all[t]), Floats) - zero * sum;
            found[t] += exact * (size * scales[t * layer.groups + g]);
        }
    }
    const int64_t first = block * ROWS, rows = std::min<int64_t>(ROWS, layer.outputs - first);
    for (int t = 0; t < T; t++)
        for (int64_t row = 0; row < rows; row++)
            results[t * layer.outputs + first + row] = found[t][row] + (layer.bias ? layer.bias[first + row] : 0.0f);
}

template <int BITS>
void all_tokens(const Layer& layer, int64_t block, const Rounded& rounded, int64_t tokens, float* results) {
    const int64_t padded = layer.groups * layer.group;
    int64_t token = 0;
    auto next = [&](auto count) {
        constexpr int T = decltype(count)::value;
        block_of<T, BITS>(layer, block, rounded.numbers.data() + token * padded, rounded.scales.data() + token * layer.groups,
                          rounded.sums.data() + token * layer.groups, results + token * layer.outputs);
        token += T;
    };
    while (token + TOKENS <= tokens) next(std::integral_constant<int, TOKENS>());
    while (token + 2 <= tokens) next(std::integral_constant<int, 2>());
    while (token < tokens) next(std::integral_constant<int, 1>());
}

}  // namespace

extern "C" {

const char* instructions() { return NAME; }

// results [tokens, outputs] = inputs [tokens, inputs] times the weights' transpose, plus bias.
void quantised_linear(const float* inputs, int64_t tokens, const uint8_t* weights, const float* scales, const float* zeros,
                      const float* bias, int64_t outputs, int64_t width, int64_t group, int64_t bits, int64_t per_row,
                      float* results) {
    const Layer layer{weights, scales, zeros, bias, outputs, width, group, (width + group - 1) / group, bits, per_row != 0};
    const int64_t padded = layer.groups * group, blocks = (outputs + ROWS - 1) / ROWS;
    static thread_local Rounded rounded;
    rounded.numbers.resize(tokens * padded);
    rounded.scales.resize(tokens * layer.groups);
    rounded.sums.resize(tokens * layer.groups);
    Rounded& shared = rounded;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t each = 0; each < tokens * layer.groups; each++) {
            const int64_t token = each / layer.groups, begin = each % layer.groups * group;
            round_group(inputs + token * width + begin, std::min(group, width - begin), group,
                        shared.numbers.data() + token * padded + begin, shared.scales[each], shared.sums[each]);
        }
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; block++) {
            if (bits == 8) all_tokens<8>(layer, block, shared, tokens, results);
            else all_tokens<4>(layer, block, shared, tokens, results);
        }
    }
}
}
