// One pass of some tokens through all layers: what a decoder computes between its embedding and its head.
//
// The tokens may belong to several texts and stand anywhere in them; keys and values lie in pages (attention.h). The
// structures are those of step.py. Each layer is a handful of phases; the threads of the team share the tokens or the
// rows of a phase and wait for each other between them.

#include <omp.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <vector>

#include "attention.h"
#include "multiply.h"

using namespace daybreak;

namespace {

enum Order : int64_t { PRE = 0, POST = 1, PARALLEL = 2 };
enum Activation : int64_t { GELU = 0, GELU_TANH = 1, RELU = 2, SILU = 3 };
constexpr int64_t PARTS = 2;  // of a head that turn: by position, and by place within a piece

struct Norm {
    const float *gain, *bias;  // [width], or null
};

struct Block {
    Norm attention_norm, mlp_norm;
    Matrix query, key, value, out, gate, up, down;
    int64_t window;  // keys that a query sees, 0: all
    int64_t group;   // of layers that share pages
    int64_t offset;  // of this layer in a page
    float scale;     // of scores
};

struct Model {
    int64_t layers, width, inner;
    Heads heads;
    int64_t order, shared_norm, normed_residual, gated, activation, root_mean_square;
    int64_t turning, neighbours;  // components of a part of each head that turn; in which pairs
    int64_t has_final_norm, streamed;
    float residual_scale, epsilon;
    const float* slopes;  // [heads], or null
    Norm final_norm;
    const Block* blocks;
};

struct Tokens {
    int64_t count, texts;
    float* hidden;                        // [count, width]: in and out
    const float *cosines[PARTS], *sines[PARTS];  // [count, turning / 2], or null
    const int64_t* owners;                // [count]: the text of each
    const int64_t *places, *ends;         // [count]: in its text; the end of what it sees
    const int64_t* const* tables;         // [groups, texts]: addresses of pages
    int64_t threads;
};

struct Tile {
    int64_t first, count;  // tokens of one text
};

struct Room {
    std::vector<float> normed, mlp_normed, query, key, value, mixed, added, inner, gate;
    std::vector<std::vector<float>> scores;
    std::vector<Tile> tiles;
    Rounded by_width, by_mlp_width, by_inner, by_mixed;
};

void norm_of(const Model& model, const Norm& norm, const float* values, float* results) {
    const int64_t width = model.width;
    Vector total = {}, squares = {};
    float mean = 0;
    if (!model.root_mean_square) {
        for (int64_t i = 0; i < width; i += LANES)
            total += load(values + i, width - i);
        mean = sum(total) / (float)width;
    }
    for (int64_t i = 0; i < width; i += LANES) {
        Vector apart = load(values + i, width - i) - mean;
        for (int64_t lane = width - i; lane < LANES; lane++) apart[lane] = 0;
        squares = fused(apart, apart, squares);
    }
    const float factor = 1.0f / std::sqrt(sum(squares) / (float)width + model.epsilon);
    for (int64_t i = 0; i < width; i += LANES) {
        Vector even = (load(values + i, width - i) - mean) * factor;
        if (norm.gain) even *= load(norm.gain + i, width - i);
        if (norm.bias) even += load(norm.bias + i, width - i);
        store(results + i, even, width - i);
    }
}

// The first components of each head turn, those of the second part behind those of the first.
void turn(const Model& model, const Tokens& tokens, int64_t token, float* values, int64_t heads) {
    const int64_t half = model.turning / 2;
    for (int64_t part = 0; part < PARTS && tokens.cosines[part]; part++) {
        const float *cosine = tokens.cosines[part] + token * half, *sine = tokens.sines[part] + token * half;
        for (int64_t head = 0; head < heads; head++) {
            float* own = values + head * model.heads.width + part * model.turning;
            const int64_t stride = model.neighbours ? 2 : 1, other = model.neighbours ? 1 : half;
            for (int64_t j = 0; j < half; j++) {
                const float one = own[j * stride], two = own[j * stride + other];
                own[j * stride] = one * cosine[j] - two * sine[j];
                own[j * stride + other] = two * cosine[j] + one * sine[j];
            }
        }
    }
}

Vector activated(int64_t activation, Vector x) {
    switch (activation) {
        case GELU: return 0.5f * x * (1.0f + error_function(x * 0.70710678118654752f));
        case GELU_TANH:
            return x / (1.0f + exponential(-2.0f * 0.79788456080286536f * (x + 0.044715f * x * x * x)));
        case RELU: return x < 0.0f ? Vector{} : x;
        default: return x / (1.0f + exponential(-x));
    }
}

void activate(const Model& model, float* values, const float* gate) {
    for (int64_t i = 0; i < model.inner; i += LANES) {
        const int64_t left = model.inner - i;
        const Vector found = activated(model.activation, load((gate ? gate : values) + i, left));
        store(values + i, gate ? found * load(values + i, left) : found, left);
    }
}

template <class Number>
void attend_tile(const Model& model, const Block& block, const Tokens& tokens, const Tile& tile, int64_t head, Room& room,
                 std::vector<float>& scores) {
    const Heads& heads = model.heads;
    const int64_t stride = heads.heads * heads.width, text = tokens.owners[tile.first];
    Query asked[QUERIES];
    const float* queries[QUERIES];
    float* results[QUERIES];
    int64_t first = INT64_MAX, last = 0;
    for (int64_t q = 0; q < tile.count; q++) {
        const int64_t token = tile.first + q, place = tokens.places[token];
        asked[q] = {place, block.window ? std::max<int64_t>(0, place + 1 - block.window) : 0, tokens.ends[token]};
        queries[q] = room.query.data() + token * stride + head * heads.width;
        results[q] = room.mixed.data() + token * stride + head * heads.width;
        first = std::min(first, asked[q].first), last = std::max(last, asked[q].last);
    }
    scores.resize((last - first / PAGE * PAGE + PAGE) * QUERIES);
    const int64_t* pages = tokens.tables[block.group * tokens.texts + text];
    const float slope = model.slopes ? model.slopes[head] : 0.0f;
    if (tile.count == QUERIES) {
        attend<Number, QUERIES>(heads, head, asked, queries, pages, block.offset, block.scale, slope, scores.data(), results);
    } else {
        for (int64_t q = 0; q < tile.count; q++)
            attend<Number, 1>(heads, head, asked + q, queries + q, pages, block.offset, block.scale, slope, scores.data(),
                              results + q);
    }
}

void attention(const Model& model, const Block& block, const Tokens& tokens, Room& room, std::vector<float>& scores) {
    const int64_t heads = model.heads.heads, parts = (int64_t)room.tiles.size() * heads;
    // Heads of one text one after another, as they lie, but enough to share.
    const int64_t together = std::max<int64_t>(1, std::min(heads, parts / (4 * omp_get_num_threads())));
#pragma omp for schedule(dynamic, together)
    for (int64_t part = 0; part < parts; part++) {
        const Tile& tile = room.tiles[part / heads];
        const int64_t head = part % heads;
        switch (model.heads.stored) {
            case AS_FLOATS: attend_tile<float>(model, block, tokens, tile, head, room, scores); break;
            case AS_BFLOATS: attend_tile<uint16_t>(model, block, tokens, tile, head, room, scores); break;
            default: attend_tile<int8_t>(model, block, tokens, tile, head, room, scores);
        }
    }
}

// What a sublayer adds to, and the sum: the input or its norm, scaled.
void add(const Model& model, float* hidden, const float* normed, const float* added, int64_t count) {
    const float* carried = model.normed_residual ? normed : hidden;
    for (int64_t i = 0; i < count; i++) hidden[i] = carried[i] * model.residual_scale + added[i];
}

// The phases of a layer, called by every thread of a team.
void layer(const Model& model, const Block& block, const Tokens& tokens, Room& room, std::vector<float>& scores) {
    const int64_t count = tokens.count, width = model.width, key_width = model.heads.key_heads * model.heads.width;
    const bool post = model.order == POST, parallel = model.order == PARALLEL, apart = parallel && !model.shared_norm;
    float *hidden = tokens.hidden, *normed = post ? hidden : room.normed.data();
#pragma omp for schedule(static)
    for (int64_t token = 0; token < count; token++) {
        if (!post) norm_of(model, block.attention_norm, hidden + token * width, normed + token * width);
        round_token(block.query, normed, token, room.by_width);
        if (apart) {
            norm_of(model, block.mlp_norm, hidden + token * width, room.mlp_normed.data() + token * width);
            round_token(block.up, room.mlp_normed.data(), token, room.by_mlp_width);
        }
    }
    const Input input{normed, count, width, &room.by_width};
    const Input mlp_input = apart ? Input{room.mlp_normed.data(), count, width, &room.by_mlp_width} : input;
    multiply(block.query, input, room.query.data());
    multiply(block.key, input, room.key.data());
    multiply(block.value, input, room.value.data());
    if (parallel) {
        multiply(block.up, mlp_input, room.inner.data());
        if (model.gated) multiply(block.gate, mlp_input, room.gate.data());
    }
#pragma omp barrier
#pragma omp for schedule(static)
    for (int64_t token = 0; token < count; token++) {
        turn(model, tokens, token, room.query.data() + token * width, model.heads.heads);
        turn(model, tokens, token, room.key.data() + token * key_width, model.heads.key_heads);
        const int64_t place = tokens.places[token];
        const int64_t* pages = tokens.tables[block.group * tokens.texts + tokens.owners[token]];
        keep(model.heads, reinterpret_cast<char*>(pages[place / PAGE]) + block.offset, place % PAGE,
             room.key.data() + token * key_width, room.value.data() + token * key_width);
    }
    attention(model, block, tokens, room, scores);
#pragma omp for schedule(static)
    for (int64_t token = 0; token < count; token++) {
        round_token(block.out, room.mixed.data(), token, room.by_mixed);
        if (parallel) {
            float* inner = room.inner.data() + token * model.inner;
            activate(model, inner, model.gated ? room.gate.data() + token * model.inner : nullptr);
            round_token(block.down, room.inner.data(), token, room.by_inner);
        }
    }
    multiply(block.out, {room.mixed.data(), count, width, &room.by_mixed}, room.added.data());
    if (parallel) multiply(block.down, {room.inner.data(), count, model.inner, &room.by_inner}, room.normed.data());
#pragma omp barrier
#pragma omp for schedule(static)
    for (int64_t token = 0; token < count; token++) {
        float *own = hidden + token * width, *of_norm = room.normed.data() + token * width;
        const float* added = room.added.data() + token * width;
        if (parallel) {
            for (int64_t i = 0; i < width; i++) own[i] = (own[i] + added[i]) + of_norm[i];
            continue;
        }
        add(model, own, of_norm, added, width);
        norm_of(model, post ? block.attention_norm : block.mlp_norm, own, post ? own : of_norm);
        round_token(block.up, normed, token, room.by_mlp_width);
    }
    if (parallel) return;
    const Input second{normed, count, width, &room.by_mlp_width};
    multiply(block.up, second, room.inner.data());
    if (model.gated) multiply(block.gate, second, room.gate.data());
#pragma omp barrier
#pragma omp for schedule(static)
    for (int64_t token = 0; token < count; token++) {
        float* inner = room.inner.data() + token * model.inner;
        activate(model, inner, model.gated ? room.gate.data() + token * model.inner : nullptr);
        round_token(block.down, room.inner.data(), token, room.by_inner);
    }
    multiply(block.down, {room.inner.data(), count, model.inner, &room.by_inner}, room.added.data());
#pragma omp barrier
#pragma omp for schedule(static)
    for (int64_t token = 0; token < count; token++) {
        float* own = hidden + token * width;
        add(model, own, room.normed.data() + token * width, room.added.data() + token * width, width);
        if (post) norm_of(model, block.mlp_norm, own, own);
    }
}

void prepare(const Model& model, const Tokens& tokens, Room& room) {
    const int64_t count = tokens.count, width = model.width, key_width = model.heads.key_heads * model.heads.width;
    for (auto* each : {&room.normed, &room.mlp_normed, &room.query, &room.mixed, &room.added}) each->resize(count * width);
    for (auto* each : {&room.key, &room.value}) each->resize(count * key_width);
    room.inner.resize(count * model.inner);
    if (model.gated) room.gate.resize(count * model.inner);
    const Block& block = model.blocks[0];
    room.by_width.size_for(block.query, count);
    room.by_mlp_width.size_for(block.up, count);
    room.by_mixed.size_for(block.out, count);
    room.by_inner.size_for(block.down, count);
    room.scores.resize(std::max<size_t>(room.scores.size(), tokens.threads));
    room.tiles.clear();
    for (int64_t token = 0; token < count;) {
        int64_t end = token + 1;
        while (end < count && end - token < QUERIES && tokens.owners[end] == tokens.owners[token]) end++;
        room.tiles.push_back({token, end - token});
        token = end;
    }
}

void fetch(const Matrix& matrix) {
    const int64_t padded = matrix.quantised() ? (matrix.inputs + matrix.group - 1) / matrix.group * matrix.group : matrix.inputs;
    const int64_t rows = matrix.quantised() ? (matrix.outputs + ROWS - 1) / ROWS * ROWS : matrix.outputs;
    const int64_t bits = matrix.kind == FLOATS ? 32 : (matrix.kind == BFLOATS ? 16 : matrix.kind);
    const uintptr_t page = sysconf(_SC_PAGESIZE), begin = reinterpret_cast<uintptr_t>(matrix.weights) / page * page;
    if (matrix.kind != NONE)
        madvise(reinterpret_cast<void*>(begin), rows * padded * bits / 8 + page, MADV_WILLNEED);
}

// The weights of a layer are asked for while the one before is computed: they may be on a disk.
void fetch_layer(const Block& block) {
    for (const Matrix* each : {&block.query, &block.key, &block.value, &block.out, &block.gate, &block.up, &block.down})
        fetch(*each);
}

}  // namespace

extern "C" {

int64_t bytes_of_layer(const Model* model) { return model->heads.bytes(); }

void step(const Model* model, const Tokens* tokens) {
    static thread_local Room own;
    Room& room = own;
    prepare(*model, *tokens, room);
#pragma omp parallel num_threads(tokens->threads)
    {
        std::vector<float>& scores = room.scores[omp_get_thread_num()];
        for (int64_t number = 0; number < model->layers; number++) {
            if (model->streamed) {
#pragma omp single nowait
                fetch_layer(model->blocks[(number + 1) % model->layers]);
            }
            layer(*model, model->blocks[number], *tokens, room, scores);
        }
        if (model->has_final_norm) {
#pragma omp for schedule(static)
            for (int64_t token = 0; token < tokens->count; token++) {
                float* hidden = tokens->hidden + token * model->width;
                norm_of(*model, model->final_norm, hidden, hidden);
            }
        }
    }
}
}
