// Attention over keys and values in pages of 16 tokens.
//
// Of a page and layer, first come the keys [key heads, head width, 16 tokens], so that a register holds one component
// of several of them, then the values [key heads, 16 tokens, head width], and, with 8 bits, a scale for each token and
// head of both. What a query finds does not depend on the queries beside it: sums run in the order of the places.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "vectors.h"

namespace daybreak {

constexpr int PAGE = 16;
constexpr int QUERIES = 4;  // that read keys and values together
constexpr int REGISTERS = PAGE / LANES;

enum Stored : int64_t { AS_FLOATS = 0, AS_BFLOATS = 1, AS_EIGHTS = 2 };

struct Heads {
    int64_t heads, key_heads, width;
    int64_t stored;

    int64_t bytes_of_number() const { return stored == AS_FLOATS ? 4 : (stored == AS_BFLOATS ? 2 : 1); }
    int64_t numbers() const { return key_heads * width * PAGE; }
    // Of one layer in a page.
    int64_t bytes() const {
        return 2 * numbers() * bytes_of_number() + (stored == AS_EIGHTS ? 2 * key_heads * PAGE * 4 : 0);
    }
};

inline uint16_t shortened(float value) {  // to bfloat16, to the nearest, of two the even one
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (value != value) return (uint16_t)(bits >> 16 | 64);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float eighths(const float* values, int64_t count, int8_t* numbers, int64_t stride) {
    float top = 0, poison = 0;
    for (int64_t i = 0; i < count; i++) top = std::max(top, std::fabs(values[i])), poison += values[i] * 0.0f;
    const float factor = top > 0 ? 127.0f / top : 0.0f;
    for (int64_t i = 0; i < count; i++) numbers[i * stride] = (int8_t)std::lrint(values[i] * factor);
    return top / 127.0f + poison;
}

// Put a token's key and value [key heads, head width] at its place of a page.
inline void keep(const Heads& heads, char* page, int64_t slot, const float* keys, const float* values) {
    for (int64_t head = 0; head < heads.key_heads; head++) {
        const float *key = keys + head * heads.width, *value = values + head * heads.width;
        const int64_t of_key = head * heads.width * PAGE + slot, of_value = (head * PAGE + slot) * heads.width;
        if (heads.stored == AS_FLOATS) {
            float* all = reinterpret_cast<float*>(page);
            for (int64_t d = 0; d < heads.width; d++) all[of_key + d * PAGE] = key[d];
            std::memcpy(all + heads.numbers() + of_value, value, heads.width * sizeof(float));
        } else if (heads.stored == AS_BFLOATS) {
            uint16_t* all = reinterpret_cast<uint16_t*>(page);
            for (int64_t d = 0; d < heads.width; d++) all[of_key + d * PAGE] = shortened(key[d]);
            for (int64_t d = 0; d < heads.width; d++) all[heads.numbers() + of_value + d] = shortened(value[d]);
        } else {
            int8_t* all = reinterpret_cast<int8_t*>(page);
            float* scales = reinterpret_cast<float*>(page + 2 * heads.numbers()) + head * PAGE + slot;
            scales[0] = eighths(key, heads.width, all + of_key, PAGE);
            scales[heads.key_heads * PAGE] = eighths(value, heads.width, all + heads.numbers() + of_value, 1);
        }
    }
}

template <class Number>
constexpr bool SCALED = sizeof(Number) == 1;

// Products of Q queries with the 16 keys of a page: [Q, PAGE], `row` apart in `scores`.
template <class Number, int Q>
inline void products(const float* const* queries, const Number* keys, const float* scales, int64_t width, float factor,
                     float* scores, int64_t row) {
    Vector own[Q][REGISTERS] = {};
    for (int64_t d = 0; d < width; d++) {
        Vector key[REGISTERS];
        for (int part = 0; part < REGISTERS; part++) key[part] = load(keys + d * PAGE + part * LANES);
        for (int q = 0; q < Q; q++)
            for (int part = 0; part < REGISTERS; part++) own[q][part] = fused(key[part], all(queries[q][d]), own[q][part]);
    }
    for (int q = 0; q < Q; q++)
        for (int part = 0; part < REGISTERS; part++) {
            Vector found = own[q][part] * factor;
            if (SCALED<Number>) found *= load(scales + part * LANES);
            store(scores + q * row + part * LANES, found);
        }
}

// Add values of a page, weighted, to Q results; `weights` [Q, PAGE], `row` apart.
template <class Number, int Q, int V>
inline void weighted(const float* weights, int64_t row, const Number* values, const float* scales, int64_t first, int64_t last,
                     int64_t width, int64_t d, float* const* results, int64_t count) {
    Vector own[Q][V];
    for (int q = 0; q < Q; q++)
        for (int v = 0; v < V; v++)
            own[q][v] = count < LANES ? load(results[q] + d, count) : load(results[q] + d + v * LANES);
    for (int64_t j = first; j < last; j++) {
        Vector value[V];
        for (int v = 0; v < V; v++) {
            const Number* place = values + j * width + d + v * LANES;
            value[v] = count < LANES ? load(place, count) : load(place);
            if (SCALED<Number>) value[v] *= scales[j];
        }
        for (int q = 0; q < Q; q++)
            for (int v = 0; v < V; v++) own[q][v] = fused(value[v], all(weights[q * row + j]), own[q][v]);
    }
    for (int q = 0; q < Q; q++)
        for (int v = 0; v < V; v++)
            if (count < LANES) store(results[q] + d, own[q][v], count);
            else store(results[q] + d + v * LANES, own[q][v]);
}

// e^(score - largest) in place; returns their sum.
inline float soften(float* scores, int64_t count) {
    Vector most = all(-std::numeric_limits<float>::infinity()), total = {};
    for (int64_t j = 0; j < count; j += LANES) most = larger(load(scores + j), most);
    const float top = largest(most);
    for (int64_t j = 0; j < count; j += LANES) {
        const Vector found = exponential(load(scores + j) - top);
        store(scores + j, found);
        total += found;
    }
    return sum(total);
}

struct Query {
    int64_t place;        // in its text
    int64_t first, last;  // of the keys that it sees: from, and up to but not with
};

// Q queries of one text and head; `pages` are the layer's, by place / 16; `scores` has room for Q rows of keys.
template <class Number, int Q>
void attend(const Heads& heads, int64_t head, const Query* asked, const float* const* queries, const int64_t* pages,
            int64_t offset, float factor, float slope, float* scores, float* const* results) {
    int64_t first = asked[0].first, last = asked[0].last;
    for (int q = 1; q < Q; q++) first = std::min(first, asked[q].first), last = std::max(last, asked[q].last);
    const int64_t from = first / PAGE * PAGE, row = (last - from + PAGE - 1) / PAGE * PAGE;
    const int64_t key_head = head / (heads.heads / heads.key_heads), width = heads.width;
    const int64_t of_head = key_head * width * PAGE, of_scales = 2 * heads.numbers() * sizeof(Number);
    for (int64_t at = 0; at < row; at += PAGE) {
        const char* page = reinterpret_cast<const char*>(pages[(from + at) / PAGE]) + offset;
        const float* scales = reinterpret_cast<const float*>(page + of_scales) + key_head * PAGE;
        products<Number, Q>(queries, reinterpret_cast<const Number*>(page) + of_head, scales, width, factor, scores + at, row);
    }
    float totals[Q];
    for (int q = 0; q < Q; q++) {
        float* own = scores + q * row;
        if (slope != 0.0f)
            for (int64_t j = 0; j < row; j++) own[j] += slope * (float)(int32_t)(from + j - asked[q].place);
        std::fill(own, own + (asked[q].first - from), -std::numeric_limits<float>::infinity());
        std::fill(own + (asked[q].last - from), own + row, -std::numeric_limits<float>::infinity());
        totals[q] = soften(own, row);
        std::fill(results[q], results[q] + width, 0.0f);
    }
    for (int64_t at = 0; at < row; at += PAGE) {
        const char* page = reinterpret_cast<const char*>(pages[(from + at) / PAGE]) + offset;
        const Number* values = reinterpret_cast<const Number*>(page) + heads.numbers() + of_head;
        const float* scales = reinterpret_cast<const float*>(page + of_scales) + (heads.key_heads + key_head) * PAGE;
        const int64_t begin = std::max<int64_t>(0, first - from - at), end = std::min<int64_t>(PAGE, last - from - at);
        constexpr int V = Q == 1 ? 4 : 2;
        int64_t d = 0;
        for (; d + V * LANES <= width; d += V * LANES)
            weighted<Number, Q, V>(scores + at, row, values, scales, begin, end, width, d, results, LANES);
        for (; d + LANES <= width; d += LANES)
            weighted<Number, Q, 1>(scores + at, row, values, scales, begin, end, width, d, results, LANES);
        if (d < width) weighted<Number, Q, 1>(scores + at, row, values, scales, begin, end, width, d, results, width - d);
    }
    for (int q = 0; q < Q; q++)
        for (int64_t d = 0; d < width; d++) results[q][d] /= totals[q];
}

}  // namespace daybreak
