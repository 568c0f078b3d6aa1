// Random decoders and batches through the whole step: decode rows, prefill chunks and wrong guesses in one batch.
// Each row must have the same bits as alone; texts alone are compared with double precision.
// Tables and batches have no spare memory, so that AddressSanitizer sees each access past their ends.
// usage: fuzz_step SECONDS SEED, for at least LEAST decoders
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "kernels/instruction_set.hpp"
#include "random_model.hpp"
#include "step/step.hpp"

using namespace secateur;

namespace {

constexpr long LEAST = 15;  // decoders, even on a machine too busy for them in SECONDS

struct Text {
    std::vector<int32_t> ids, blocks;
    std::vector<float> alone;  // [ids, vocabulary]
    int32_t after = 0;         // leading positions shared with the text before it
    int32_t done = 0;

    int32_t left() const { return static_cast<int32_t>(ids.size()) - done; }
};

struct Piece {
    int32_t text;
    int32_t start, right;  // leading ids that are the text's; the others are wrong guesses
    std::vector<int32_t> ids;
    int32_t wanted;
    std::vector<int32_t> blocks;
};

bool failed(const char* what) {
    std::printf("%s\n", what);
    return false;
}

void run(Step& step, const std::vector<Piece>& pieces, std::vector<float>& logits) {
    std::vector<int32_t> ids;
    std::vector<Chunk> chunks;
    std::vector<std::unique_ptr<int32_t[]>> tables;
    int64_t wanted = 0;
    for (const Piece& piece : pieces) {
        ids.insert(ids.end(), piece.ids.begin(), piece.ids.end());
        tables.push_back(exact(piece.blocks));
        const std::span<const int32_t> table(tables.back().get(), piece.blocks.size());
        chunks.push_back({piece.start, static_cast<int32_t>(piece.ids.size()), piece.wanted, table});
        wanted += std::max(piece.wanted, 0);
    }
    const auto own_ids = exact(ids);
    const auto own_chunks = exact(chunks);
    const auto room = exact(std::vector<float>(wanted * step.model().vocabulary, NAN));
    step.run({std::span(own_ids.get(), ids.size()), std::span(own_chunks.get(), chunks.size())}, room.get());
    logits.assign(room.get(), room.get() + wanted * step.model().vocabulary);
}

int32_t blocks_of(size_t positions) { return static_cast<int32_t>((positions + block_positions - 1) / block_positions); }

class Play {
public:
    Play(const RandomModel& made, Pool& alone, Pool& pool, const InstructionSet& set)
        : made_(made), alone_(alone), pool_(pool), set_(set) {}

    bool run_all() {
        make_texts();
        for (Text& text : texts_) compute_alone(text);
        if (!is_right(texts_[0])) return failed("a text alone has other logits than in double precision");
        const int32_t all = static_cast<int32_t>(total_ + texts_.size());
        tokens_ = static_cast<int32_t>(pick(0, 1) ? all : pick(1, all));
        Step step(made_.model, {tokens_, blocks_, made_.eight_bits}, pool_, set_);
        while (std::ranges::any_of(texts_, [](const Text& text) { return text.left() > 0; })) {
            const std::vector<Piece> pieces = plan();
            if (pick(0, 3) == 0 && !is_refused(step, pieces)) return failed("an invalid batch was computed");
            run(step, pieces, logits_);
            if (!is_same(pieces)) return failed("a row has other bits than alone");
            for (const Piece& piece : pieces) texts_[piece.text].done = piece.start + piece.right;
        }
        return true;
    }

private:
    int32_t random_id() const { return static_cast<int32_t>(pick(0, made_.model.vocabulary - 1)); }

    // Makes texts that use all blocks of a cache; some share leading blocks with the one before.
    void make_texts() {
        const int64_t count = pick(1, 3);
        for (int64_t i = 0; i < count; ++i) {
            Text text;
            for (int64_t size = pick(1, made_.model.positions); size > 0; --size) text.ids.push_back(random_id());
            if (i > 0 && pick(0, 1)) share(texts_.back(), text);
            while (blocks_of(text.ids.size()) > static_cast<int32_t>(text.blocks.size())) text.blocks.push_back(blocks_++);
            total_ += text.ids.size() - text.done;
            texts_.push_back(text);
        }
        std::vector<int32_t> places(blocks_);
        for (int32_t i = 0; i < blocks_; ++i) places[i] = i;
        std::ranges::shuffle(places, generator);
        for (Text& text : texts_)
            for (int32_t& block : text.blocks) block = places[block];
    }

    static void share(const Text& before, Text& text) {
        const auto whole = static_cast<int32_t>(std::min(before.ids.size(), text.ids.size() - 1) / block_positions);
        text.after = text.done = whole * block_positions;
        std::copy_n(before.ids.begin(), text.after, text.ids.begin());
        text.blocks.assign(before.blocks.begin(), before.blocks.begin() + whole);
    }

    void compute_alone(Text& text) {
        const auto size = static_cast<int32_t>(text.ids.size());
        std::vector<int32_t> blocks(blocks_of(size));
        for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<int32_t>(i);
        Step step(made_.model, {size, blocks_of(size), made_.eight_bits}, alone_, set_);
        run(step, {{0, 0, size, text.ids, size, blocks}}, text.alone);
    }

    // Compares all logits together, since one value rounded differently changes later rows a little.
    bool is_right(const Text& text) const {
        #if defined(SECATEUR_AVX512)
        Reference reference(made_, &set_ == &AVX512);
#else
        Reference reference(made_, false);
#endif
        double error = 0, size = 0;
        size_t at = 0;
        for (const int32_t id : text.ids)
            for (const double expected : reference.next(id)) {
                const double difference = text.alone[at++] - expected;
                error += difference * difference, size += expected * expected;
            }
        close += error <= 1e-10 * size;
        if (error <= tolerance * tolerance * size) return true;
        far += made_.eight_bits;  // an int8 code rounded differently is off by 1/127, which may exceed the tolerance
        if (made_.eight_bits && error <= 25 * tolerance * tolerance * size) return true;
        std::printf("relative error %g\n", std::sqrt(error / size));
        return false;
    }

    std::vector<Piece> plan() {
        std::vector<Piece> pieces;
        int32_t room = tokens_;
        for (size_t i = 0; i < texts_.size(); ++i) {
            const Text& text = texts_[i];
            const bool waits = waits_for_another(i);
            const int64_t counts[] = {0, 1, 1, 13, text.left()};
            const auto count = static_cast<int32_t>(std::min<int64_t>({counts[pick(0, 4)], text.left(), room}));
            if (waits || count == 0) continue;
            pieces.push_back(piece(static_cast<int32_t>(i), count));
            room -= count;
        }
        std::ranges::shuffle(pieces, generator);
        return pieces;
    }

    // Whether shared blocks of the text before, or of those before it, are not computed yet.
    bool waits_for_another(size_t i) const {
        const Text& text = texts_[i];
        return text.after > 0 && (texts_[i - 1].done < text.after || waits_for_another(i - 1));
    }

    Piece piece(int32_t number, int32_t count) const {
        const Text& text = texts_[number];
        const auto from = text.ids.begin() + text.done;
        Piece made{number, text.done, count, {from, from + count}, static_cast<int32_t>(pick(0, count)), {}};
        if (pick(0, 2) == 0) made.right = static_cast<int32_t>(pick(1, count)), made.wanted = count;
        for (int32_t i = made.right; i < count; ++i) made.ids[i] = random_id();
        made.blocks.assign(text.blocks.begin(), text.blocks.begin() + blocks_of(text.done + count));
        if (pick(0, 1)) made.blocks.push_back(-1);  // a table may have spare entries
        return made;
    }

    // Rows of right ids must equal those of the text alone.
    bool is_same(const std::vector<Piece>& pieces) const {
        const int64_t width = made_.model.vocabulary;
        const float* row = logits_.data();
        for (const Piece& piece : pieces)
            for (auto at = static_cast<int32_t>(piece.ids.size()) - piece.wanted; at < int(piece.ids.size()); ++at) {
                const float* expected = texts_[piece.text].alone.data() + (piece.start + at) * width;
                if (at < piece.right && std::memcmp(row, expected, width * sizeof(float))) return false;
                row += width;
            }
        return true;
    }

    bool is_refused(Step& step, std::vector<Piece> pieces) const {
        if (pieces.empty()) return true;
        Piece& piece = pieces[pick(0, static_cast<int64_t>(pieces.size()) - 1)];
        const auto needed = static_cast<size_t>(blocks_of(piece.start + piece.ids.size()));
        switch (pick(0, 7)) {
            case 0: piece.ids[pick(0, int64_t(piece.ids.size()) - 1)] = pick(0, 1) ? -1 : made_.model.vocabulary; break;
            case 1: piece.start = pick(0, 1) ? -1 : made_.model.positions; break;
            case 2: piece.start = INT32_MAX; break;
            case 3: piece.wanted = pick(0, 1) ? -1 : static_cast<int32_t>(piece.ids.size()) + 1; break;
            case 4: piece.blocks[pick(0, int64_t(needed) - 1)] = pick(0, 1) ? -1 : blocks_; break;
            case 5: piece.blocks.resize(needed - 1); break;
            case 6: piece.ids.clear(), piece.wanted = 0; break;
            default: piece.ids.resize(piece.ids.size() + tokens_); break;
        }
        std::vector<float> nothing;
        try {
            run(step, pieces, nothing);
        } catch (const std::invalid_argument&) {
            return true;
        }
        return false;
    }

    static constexpr double tolerance = 0.02;

public:
    inline static long far = 0;    // decoders beyond the tolerance, because of int8 rounding
    inline static long close = 0;  // decoders that round every value as double precision does

private:
    const RandomModel& made_;
    Pool &alone_, &pool_;
    const InstructionSet& set_;
    std::vector<Text> texts_;
    std::vector<float> logits_;
    size_t total_ = 0;
    int32_t blocks_ = 0, tokens_ = 0;
};

bool once(Pool& one, Pool& several) {
    const RandomModel made = Maker().make(pick(0, 5) == 0);
    const std::vector<const InstructionSet*> sets = available();
    const InstructionSet& set = *sets[pick(0, static_cast<int64_t>(sets.size()) - 1)];
    Pool& pool = pick(0, 2) ? several : one;
    if (Play(made, one, pool, set).run_all()) return true;
    std::printf("%s, %d threads, %zu layers, hidden %d, head width %d, %s keys\n", set.name, pool.threads(),
                made.model.layers.size(), made.model.hidden, made.model.head_width, made.eight_bits ? "int8" : "bf16");
    return false;
}

}  // namespace

int main(int count, char** arguments) {
    const double seconds = count > 1 ? std::atof(arguments[1]) : 1;
    const int64_t seed = count > 2 ? std::atoll(arguments[2]) : 0;
    Pool one(1), three(3);
    const auto start = std::chrono::steady_clock::now();
    long cases = 0;
    do {
        generator.seed(seed + cases);
        if (!once(one, three)) return std::printf("seed %ld\n", long(seed + cases)), 1;
        ++cases;
    } while (cases < LEAST || std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds);
    if (Play::far > 1 + cases / 50) return std::printf("%ld of %ld decoders are far off\n", Play::far, cases), 1;
    if (2 * Play::close < cases) return std::printf("only %ld of %ld decoders are close\n", Play::close, cases), 1;
    std::printf("%ld decoders agree on", cases);
    for (const InstructionSet* set : available()) std::printf(" %s", set->name);
    std::printf("\n");
}
