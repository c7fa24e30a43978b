// Damages packed files, loads them, and multiplies by what is accepted.
//
//   fuzz [--count=N] [--seed=S] [--only=I] FILE...
//
// The files are the seeds; fuzz/make_corpus.py makes them. Half of the damaged files
// get right sizes and checksums again, so that they reach the checks of the storage
// types and the kernels. Case I depends on S, I and the seeds alone: --only repeats it.
// Built with -fsanitize=address,undefined, any access out of bounds ends the program.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "mutate.h"
#include "run.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace sparse_jax::fuzz {
namespace {

constexpr size_t kArenaBytes = size_t{8} << 20;
constexpr size_t kLongestSentence = 400;

uint64_t current_case = 0;

void name_case() {
  std::fprintf(stderr, "fuzz: this was --only=%llu\n",
               static_cast<unsigned long long>(current_case));
}

[[noreturn]] void fail(const std::string& why) {
  std::fprintf(stderr, "fuzz: %s\n", why.c_str());
  std::exit(1);
}

struct Options {
  uint64_t count = 1000;
  uint64_t seed = 0;
  bool has_only = false;
  uint64_t only = 0;
  std::vector<std::string> files;
};

Options parse_options(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const std::string value = argument.substr(argument.find('=') + 1);
    if (argument.rfind("--count=", 0) == 0) {
      options.count = std::stoull(value);
    } else if (argument.rfind("--seed=", 0) == 0) {
      options.seed = std::stoull(value);
    } else if (argument.rfind("--only=", 0) == 0) {
      options.has_only = true;
      options.only = std::stoull(value);
    } else if (argument.rfind("--", 0) == 0) {
      fail("unknown option " + argument);
    } else {
      options.files.push_back(argument);
    }
  }
  if (options.files.empty()) fail("name the seed files, of fuzz/make_corpus.py");
  return options;
}

// Reads the seeds. Undamaged, all of their matrices must pass.
Corpus read_corpus(const std::vector<std::string>& files, Arena* arena) {
  Corpus corpus;
  for (const std::string& file : files) {
    std::ifstream stream(file, std::ios::binary);
    const Bytes content((std::istreambuf_iterator<char>(stream)),
                        std::istreambuf_iterator<char>());
    std::vector<FileRecord> records;
    std::string error =
        parse_packed_file(content.data(), content.size(), true, &records);
    Counts counts;
    Random random(0);
    if (error.empty()) error = run_file(content, records, arena, &random, &counts);
    if (!error.empty()) fail("seed " + file + ": " + error);
    corpus.files.push_back(content);
    corpus.parts.push_back(take_apart(content));
  }
  return corpus;
}

void check_sentence(const std::string& said) {
  if (said.size() > kLongestSentence || said.find('\n') != std::string::npos) {
    name_case();
    fail("not one sentence: " + said);
  }
}

struct Totals {
  uint64_t mended = 0, refused = 0, parsed = 0;
  Counts matrices;
  std::map<std::string, uint64_t> reasons;
};

// A sentence without the numbers and names that differ from case to case.
std::string reason(const std::string& said) {
  std::string kept;
  for (const char c : said) {
    if (c < '0' || c > '9') kept += c;
  }
  return kept;
}

void run_case(const Corpus& corpus, uint64_t seed, Arena* arena, Totals* totals) {
  Random random(seed * 0x2545f4914f6cdd1du + current_case);
  const bool mended = current_case % 2 == 1;
  const bool meaning = mended && random.below(4) != 0;
  Bytes content =
      meaning ? damage_meaning(corpus, &random) : damage_bytes(corpus, &random);
  if (mended && !meaning) content = mend(std::move(content));
  totals->mended += mended;
  // A copy of the exact size: what is read beyond its end is seen.
  const Bytes exact(content.begin(), content.end());
  std::vector<FileRecord> records;
  std::string said = parse_packed_file(exact.data(), exact.size(), true, &records);
  if (said.empty()) {
    ++totals->parsed;
    said = run_file(exact, records, arena, &random, &totals->matrices);
  } else {
    ++totals->refused;
  }
  check_sentence(said);
  if (!said.empty()) ++totals->reasons[reason(said)];
}

void print(const char* what, uint64_t count) {
  std::printf("%-46s %12llu\n", what, static_cast<unsigned long long>(count));
}

void print_totals(const Totals& totals, uint64_t count) {
  print("damaged files", count);
  print("  with right checksums", totals.mended);
  print("  refused by the parser", totals.refused);
  print("  parsed", totals.parsed);
  print("matrices in those", totals.matrices.refused + totals.matrices.accepted);
  print("  refused by their storage type", totals.matrices.refused);
  print("  accepted", totals.matrices.accepted);
  print("  multiplied", totals.matrices.products);
  print("different reasons for refusing", totals.reasons.size());
}

int main(int argc, char** argv) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_set_death_callback(name_case);
#endif
  const Options options = parse_options(argc, argv);
  Arena arena(kArenaBytes);
  const Corpus corpus = read_corpus(options.files, &arena);
  Totals totals;
  if (options.has_only) {
    current_case = options.only;
    run_case(corpus, options.seed, &arena, &totals);
    for (const auto& said : totals.reasons) std::printf("%s\n", said.first.c_str());
  } else {
    while (current_case < options.count) {
      run_case(corpus, options.seed, &arena, &totals);
      ++current_case;
    }
  }
  print_totals(totals, options.has_only ? 1 : options.count);
  return 0;
}

}  // namespace
}  // namespace sparse_jax::fuzz

int main(int argc, char** argv) { return sparse_jax::fuzz::main(argc, argv); }
