// check [ROUNDS] [--plant=weight|guard|read|step|block|byte|share|key|layer|figure]: exit code 0 when all agree, 1 at the first that does
// not, 2 for a bad argument or an instruction set that is not there. TENSURE_ISA chooses as everywhere.
#include <cstring>
#include <iterator>

#include "check/check.h"
#include "common/isa.h"

int main(int count, char **words) {
  using namespace tensure::check;
  static const char *const plants[] = {"none",  "weight", "guard", "read", "step",
                                       "block", "byte",   "share", "key",  "layer",  "figure"};
  int rounds = 40;
  Plant plant = Plant::none;
  for (int i = 1; i < count; ++i) {
    bool known = false;
    if (std::strncmp(words[i], "--plant=", 8) == 0) {
      for (int j = 0; j < static_cast<int>(std::size(plants)); ++j)
        if (std::strcmp(words[i] + 8, plants[j]) == 0) {
          plant = static_cast<Plant>(j);
          known = true;
        }
    } else {
      rounds = std::atoi(words[i]);
      known = rounds > 0;
    }
    if (!known) {
      std::printf("what is %s?\n", words[i]);
      return 2;
    }
  }
  if (tensure::isa_in_use() < 0) {
    std::printf("no instruction set for TENSURE_ISA=%s\n", tensure::isa_asked());
    return 2;
  }
  const long long blocks = check_dequantize(3 * rounds, plant), segments = check_segments(2 * rounds, plant);
  const long long moves = check_layouts(rounds / 4 + 1), convolutions = check_conv(rounds, plant);
  const long long bytes = check_dotconv(4 * rounds, plant), cuts = check_blocks(rounds, plant);
  const long long tokens = check_decoder(rounds, plant), looks = check_survey(4 * rounds, plant);
  std::printf("%s: %lld convolutions, %lld moves, %lld steps of segments, %lld runs of blocks, %lld of bytes, %lld cuts, "
              "%lld rows of decoders, %lld surveys agree\n",
              tensure::isas().items[tensure::isa_in_use()].name, convolutions, moves, segments, blocks, bytes, cuts, tokens, looks);
  return 0;
}
