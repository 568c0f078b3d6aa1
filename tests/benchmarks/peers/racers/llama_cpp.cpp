// A model in llama.cpp's own library: `llama_cpp MODEL.gguf THREADS SLOTS CONTEXT`, one request a line.
//   score FIRST N ID...             -> the natural log-probability of each of the ids from FIRST on
//   generate BATCH TOKENS N ID...   -> seconds, CPU seconds; BATCH prompts of N ids in one list, each decoded greedily past any stop id
#include <chrono>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "llama.h"

static llama_context* context;
static int vocabulary;
static std::vector<llama_token> cached;  // the ids whose keys and values the cache holds

static void add(llama_batch& batch, llama_token id, int position, int sequence, bool wanted) {
    const int row = batch.n_tokens++;
    batch.token[row] = id;
    batch.pos[row] = position;
    batch.n_seq_id[row] = 1;
    batch.seq_id[row][0] = sequence;
    batch.logits[row] = wanted;
}

static void decode(llama_batch& batch) {
    if (llama_decode(context, batch) != 0) {
        std::fprintf(stderr, "llama_decode failed\n");
        std::exit(1);
    }
}

static double log_probability(const float* logits, llama_token id) {
    double highest = logits[0], sum = 0;
    for (int i = 1; i < vocabulary; ++i) highest = std::max(highest, double(logits[i]));
    for (int i = 0; i < vocabulary; ++i) sum += std::exp(logits[i] - highest);
    return logits[id] - highest - std::log(sum);
}

static llama_token best(const float* logits) {
    int found = 0;
    for (int i = 1; i < vocabulary; ++i)
        if (logits[i] > logits[found]) found = i;
    return found;
}

static double cpu_seconds() {
    timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

static void score(std::istringstream& line, llama_batch& batch) {
    int first, count;
    line >> first >> count;
    std::vector<llama_token> ids(count);
    for (auto& id : ids) line >> id;
    int start = 0;
    while (start < first - 1 && start < int(cached.size()) && cached[start] == ids[start]) ++start;
    llama_memory_seq_rm(llama_get_memory(context), 0, start, -1);
    cached.assign(ids.begin(), ids.end() - 1);
    batch.n_tokens = 0;
    for (int i = start; i + 1 < count; ++i) add(batch, ids[i], i, 0, i + 1 >= first);
    decode(batch);
    for (int i = first; i < count; ++i)
        std::printf("%.9g ", log_probability(llama_get_logits_ith(context, i - 1 - start), ids[i]));
    std::printf("\n");
}

static void generate(std::istringstream& line, llama_batch& batch, int most) {
    int sequences, tokens, length;
    line >> sequences >> tokens >> length;
    std::vector<llama_token> prompts(sequences * length), next(sequences);
    for (auto& id : prompts) line >> id;
    const auto begin = std::chrono::steady_clock::now();
    const double cpu_begin = cpu_seconds();
    cached.clear();
    llama_memory_clear(llama_get_memory(context), true);
    batch.n_tokens = 0;
    for (int s = 0; s < sequences; ++s) {
        if (batch.n_tokens + length > most) {
            std::fprintf(stderr, "the prompts do not fit into one batch\n");
            std::exit(1);
        }
        for (int i = 0; i < length; ++i) add(batch, prompts[s * length + i], i, s, i + 1 == length);
    }
    decode(batch);
    for (int s = 0; s < sequences; ++s) next[s] = best(llama_get_logits_ith(context, (s + 1) * length - 1));
    for (int made = 1; made < tokens; ++made) {
        batch.n_tokens = 0;
        for (int s = 0; s < sequences; ++s) add(batch, next[s], length + made - 1, s, true);
        decode(batch);
        for (int s = 0; s < sequences; ++s) next[s] = best(llama_get_logits_ith(context, s));
    }
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    std::printf("%.9f %.9f\n", taken.count(), cpu_seconds() - cpu_begin);
}

int main(int, char** arguments) {
    const int threads = std::atoi(arguments[2]), slots = std::atoi(arguments[3]), length = std::atoi(arguments[4]);
    llama_log_set([](ggml_log_level level, const char* text, void*) {
        if (level >= GGML_LOG_LEVEL_WARN) std::fputs(text, stderr);
    }, nullptr);
    llama_backend_init();
    llama_model* model = llama_model_load_from_file(arguments[1], llama_model_default_params());
    if (!model) return 1;
    llama_context_params params = llama_context_default_params();
    const int most = length > 1024 ? length : 1024;
    params.n_ctx = slots * length;
    params.n_batch = most;
    params.n_ubatch = 512;
    params.n_seq_max = slots;
    params.n_threads = params.n_threads_batch = threads;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    context = llama_init_from_model(model, params);
    if (!context) return 1;
    vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
    llama_batch batch = llama_batch_init(most, 0, 1);
    std::printf("ready\n");
    std::fflush(stdout);
    for (std::string text; std::getline(std::cin, text);) {
        std::istringstream line(text);
        std::string what;
        line >> what;
        if (what == "score") score(line, batch);
        else generate(line, batch, most);
        std::fflush(stdout);
    }
}
