// Registers of floats, and the functions that layers need of them. Written with the compiler's own vectors, so that
// one text serves every processor; LANES is what a register holds.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace daybreak {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Whole __attribute__((vector_size(4 * LANES)));

// one * other + sum, rounded once where the processor can. Compilers are told not to do this on their own: whether they
// do depends on the surroundings, and a token's results must not.
inline Vector fused(Vector one, Vector other, Vector sum) {
#if defined(__AVX512F__)
    return (Vector)_mm512_fmadd_ps((__m512)one, (__m512)other, (__m512)sum);
#elif defined(__FMA__)
    return (Vector)_mm256_fmadd_ps((__m256)one, (__m256)other, (__m256)sum);
#elif defined(__ARM_NEON)
    return (Vector)vfmaq_f32((float32x4_t)sum, (float32x4_t)one, (float32x4_t)other);
#else
    return one * other + sum;
#endif
}

// (0 is subtracted: to add it would change -0, so that compilers would do it.)
inline Vector all(float value) { return value - Vector{}; }

inline Vector load(const float* place) {
    Vector found;
    std::memcpy(&found, place, sizeof found);
    return found;
}

inline Vector load(const uint16_t* place) {  // bfloat16
    typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
    typedef uint32_t Wide __attribute__((vector_size(4 * LANES)));
    Halves halves;
    std::memcpy(&halves, place, sizeof halves);
    return (Vector)(__builtin_convertvector(halves, Wide) << 16);
}

inline Vector load(const int8_t* place) {
    typedef int8_t Bytes __attribute__((vector_size(LANES)));
    Bytes bytes;
    std::memcpy(&bytes, place, sizeof bytes);
    return __builtin_convertvector(__builtin_convertvector(bytes, Whole), Vector);
}

// The first `count` of them, and zeros.
template <class Element>
inline Vector load(const Element* place, int64_t count) {
    if (count >= LANES) return load(place);
    Element some[LANES] = {};
    std::memcpy(some, place, count * sizeof(Element));
    return load(some);
}

inline void store(float* place, Vector values) { std::memcpy(place, &values, sizeof values); }
inline void store(float* place, Vector values, int64_t count) {
    if (count >= LANES) store(place, values);
    else std::memcpy(place, &values, count * sizeof(float));
}

// The upper half of the lanes is added to the lower one, until there is one left.
inline float sum(Vector values) {
#if defined(__AVX__)
#if defined(__AVX512F__)
    const __m512 whole = (__m512)values;
    const __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(whole), 1));
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(whole), upper);
#else
    const __m256 eight = (__m256)values;
#endif
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
    float parts[LANES];
    store(parts, values);
    for (int half = LANES / 2; half; half /= 2)
        for (int lane = 0; lane < half; lane++) parts[lane] += parts[lane + half];
    return parts[0];
#endif
}

// Loaded once, and kept in a register: compilers like to load again for each use, and loads are what is scarce.
inline Vector held(Vector values) {
#if defined(__AVX512F__)
    asm("" : "+v"(values));
#elif defined(__AVX__)
    asm("" : "+x"(values));
#elif defined(__ARM_NEON)
    asm("" : "+w"(values));
#endif
    return values;
}

inline float largest(Vector values) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)values);
#else
    float found = values[0];
    for (int lane = 1; lane < LANES; lane++) found = values[lane] > found ? values[lane] : found;
    return found;
#endif
}

inline int32_t sum(Whole values) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_epi32((__m512i)values);
#else
    int32_t found = 0;
    for (int lane = 0; lane < LANES; lane++) found += values[lane];
    return found;
#endif
}

inline Vector larger(Vector one, Vector other) { return one > other ? one : other; }
inline Vector size(Vector values) { return (Vector)((Whole)values & 0x7fffffff); }

// The nearest whole number, of two the even one, for sizes below 2^22.
inline Vector nearest(Vector values) {
    const float shift = 12582912.0f;
    return (values + shift) - shift;
}

// e^x to some units in the last place: 2^n times a polynomial (Cephes' coefficients). Below -87 it is 0; NaN stays NaN.
inline Vector exponential(Vector x) {
    const Vector bounded = x > 88.0f ? all(88.0f) : (x < -87.0f ? all(-87.0f) : x);
    const Vector n = nearest(bounded * 1.44269504088896341f);
    const Vector r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
    Vector p = all(1.9875691500e-4f);
    p = fused(p, r, all(1.3981999507e-3f));
    p = fused(p, r, all(8.3334519073e-3f));
    p = fused(p, r, all(4.1665795894e-2f));
    p = fused(p, r, all(1.6666665459e-1f));
    p = fused(p, r, all(5.0000001201e-1f));
    p = (p * r) * r + r + 1.0f;
    const Whole power = (__builtin_convertvector(n, Whole) + 127) << 23;
    const Vector found = p * (Vector)power;
    return x < -87.0f ? all(0.0f) : (x != x ? x : found);
}

// Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: off by 1.5e-7 at most.
inline Vector error_function(Vector x) {
    const Vector from = size(x), t = 1.0f / (1.0f + 0.3275911f * from);
    Vector p = all(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const Vector found = 1.0f - p * t * exponential(-from * from);
    return x < 0.0f ? -found : found;
}

}  // namespace daybreak
