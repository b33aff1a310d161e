// lanes ALGORITHM: prints what it gives on the host twin that RAGGEDBEV_HOST_TWIN names, a line per task.
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "common/group.h"

namespace {

using raggedbev::kLanes;

constexpr int kTasks = 4, kRounds = 3;

struct Memory {
  int values[kLanes], results[kLanes];
  double sum, lowest;
  uint32_t votes;
  std::vector<int> visits;
};

enum Meeting { kNone, kVote, kSync };

template <typename Group>
void meet(const Group& group, Meeting meeting) {
  if (meeting == kSync) group.sync();
  if (meeting == kVote) group.ballot([](int) { return true; });
}

// Each lane adds its right neighbour's value to its own, kRounds times; right with two syncs a round.
struct AddNeighbours {
  Meeting before_read, before_write;

  template <typename Group>
  void operator()(const Group& group, Memory& memory) const {
    group.each([&](int lane) { memory.values[lane] = lane * lane; });
    for (int round = 0; round < kRounds; ++round) {
      typename Group::template PerLane<int> sums;
      meet(group, before_read);
      group.each([&](int lane) { sums[lane] = memory.values[lane] + memory.values[(lane + 1) % kLanes]; });
      meet(group, before_write);
      group.each([&](int lane) { memory.values[lane] = sums[lane]; });
    }
    group.sync();
    group.each([&](int lane) { memory.results[lane] = memory.values[lane]; });
  }
};

// What all lanes read is changed by one of them, before the others have read it.
struct WriteWhatOthersRead {
  template <typename Group>
  void operator()(const Group& group, Memory& memory) const {
    group.each([&](int lane) {
      if (lane == 0) memory.values[0] = 1;
    });
    group.sync();
    const int read = memory.values[0];
    group.each([&](int lane) {
      if (lane == 0) memory.values[0] = 2;
    });
    group.sync();
    group.each([&](int lane) { memory.results[lane] = read; });
  }
};

struct Vote {
  template <typename Group>
  void operator()(const Group& group, Memory& memory) const {
    typename Group::template PerLane<double> sums, values;
    group.each([&](int lane) { sums[lane] = 1.0 / (lane + 1), values[lane] = (lane * 7 + 3) % kLanes - 0.5; });
    const uint32_t votes = group.ballot([&](int lane) { return lane % 3 == 1; });
    const double lowest = group.minimum(values), sum = group.tree_sum(sums);
    group.each([&](int lane) {
      memory.results[lane] = raggedbev::count_bits_below(votes, lane);
      if (lane == 0) memory.votes = votes, memory.lowest = lowest, memory.sum = sum;
    });
  }
};

struct VoteByHalf {
  template <typename Group>
  void operator()(const Group& group, Memory& memory) const {
    group.each([&](int lane) {
      if (lane < kLanes / 2) group.sync();
      memory.results[lane] = lane;
    });
  }
};

struct Visit {
  template <typename Group>
  void operator()(const Group& group, Memory& memory) const {
    for (int round = 0; round < kRounds; ++round) {
      group.each([&](int lane) { memory.visits.push_back(lane); });
      group.sync();
    }
  }
};

template <typename Algorithm>
void run(const Algorithm& algorithm) {
  std::vector<Memory> memory(kTasks);
  raggedbev::run_groups([&](const auto& group, int64_t number) { algorithm(group, memory[number]); }, kTasks);
  for (const Memory& m : memory) {
    for (const int result : m.results) std::printf("%d ", result);
    std::printf("%x %a %a", m.votes, m.lowest, m.sum);
    for (const int lane : m.visits) std::printf(" %d", lane);
    std::printf("\n");
  }
}

void run_cells() {
  std::vector<int64_t> visits;
  raggedbev::run_cells([&](int64_t row, int64_t column) { visits.push_back(row * 5 + column); }, 3, 5);
  for (const int64_t visit : visits) std::printf("%lld ", static_cast<long long>(visit));
  std::printf("\n");
}

}  // namespace

int main(int, char** arguments) {
  const std::string name = arguments[1];
  try {
    if (name == "add neighbours") run(AddNeighbours{kSync, kSync});
    if (name == "no sync before read") run(AddNeighbours{kNone, kSync});
    if (name == "no sync before write") run(AddNeighbours{kSync, kNone});
    if (name == "a vote for a sync") run(AddNeighbours{kSync, kVote});
    if (name == "write what others read") run(WriteWhatOthersRead{});
    if (name == "vote") run(Vote{});
    if (name == "vote by half") run(VoteByHalf{});
    if (name == "visit") run(Visit{});
    if (name == "cells") run_cells();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
