// The lanes of a warp on the host, side by side as on the device: each has a stack and runs all of a kernel for itself.
//
// From one meeting of the lanes (a sync, a vote, an exchange of values) to the next they go one after the other, in an
// order drawn anew. What depends on that order, because a sync is missing, gives one result or another. Lanes that meet
// at different places, or of which some have returned, are an error. For ThreadSanitizer the lanes are threads that
// nothing but a sync brings in order (votes and exchanges do not order memory): it sees a missing one whatever the
// order.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#include "common/host_twin.h"

#if defined(__linux__) && defined(__GNUC__)
#define RAGGEDBEV_HAS_FIBERS
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#elif defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>

extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace raggedbev {

// 0, ..., count - 1 in an order drawn from `random`.
inline std::vector<int64_t> draw_order(int64_t count, std::mt19937_64& random) {
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), int64_t{0});
  for (int64_t i = count - 1; i > 0; --i) std::swap(order[i], order[random() % (i + 1)]);
  return order;
}

// Goes on from call to call, so that every call of an operator has other draws.
inline std::mt19937_64& shuffle_draws() {
  static thread_local std::mt19937_64 random(host_twin().seed);
  return random;
}

#if defined(RAGGEDBEV_HAS_FIBERS)

class Fibers {
 public:
  enum Meeting { kReturn, kSync, kBallot, kExchange };

  Fibers(int count, std::mt19937_64& random) : random_(random), fibers_(count), seen_(count) {
    for (Fiber& fiber : fibers_) fiber.stack.reset(new char[kStackBytes]);
  }

  // body(lane) in every lane, once.
  void run(std::function<void(int)> body) {
    const Unseen unseen;
    body_ = std::move(body);
    caller_shadow_ = current_shadow();
    for (size_t lane = 0; lane < fibers_.size(); ++lane) start(fibers_[lane]);
    release(&begin_);
    do {
      for (const int64_t lane : draw_order(static_cast<int64_t>(fibers_.size()), random_)) resume(fibers_[lane], lane);
      for (size_t lane = 0; lane < fibers_.size(); ++lane) {
        if (fibers_[lane].meeting != fibers_[0].meeting) throw std::logic_error("the lanes of a group have diverged");
        seen_[lane] = fibers_[lane].value;
      }
      ++round_;
    } while (fibers_[0].meeting != kReturn);
    acquire(&end_);
    for (Fiber& fiber : fibers_) delete_shadow(fiber.shadow);
  }

  // In a lane: returns when all lanes have come to a meeting of this kind, each with its value.
  template <typename T>
  void meet(int lane, Meeting meeting, const T& value) {
    static_assert(sizeof(T) <= sizeof(Value));
    std::memcpy(fibers_[lane].value.bytes, &value, sizeof(T));
    char* const point = meeting == kSync ? &points_[round_ % 2] : nullptr;
    if (point != nullptr) release(point);
    leave(fibers_[lane], meeting);
    if (point != nullptr) acquire(point);
  }

  // What a lane brought to the last meeting.
  template <typename T>
  T value_of(int lane) const {
    T value;
    std::memcpy(&value, seen_[lane].bytes, sizeof(T));
    return value;
  }

 private:
  static constexpr size_t kStackBytes = size_t{1} << 18;

  struct Value {
    unsigned char bytes[16];
  };

  struct Fiber {
    std::unique_ptr<char[]> stack;
    ucontext_t start;
    void* place[5];  // where it goes on
    void* shadow;    // of a sanitizer
    bool started;
    Meeting meeting;
    Value value;
  };

  // ---- switching; without system calls but for the first entry into a stack

  void start(Fiber& fiber) {
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = kStackBytes;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, &Fibers::enter, 0);
    fiber.started = false;
    fiber.shadow = new_shadow();
  }

  void resume(Fiber& fiber, int64_t lane) {
    lane_ = static_cast<int>(lane);
    current() = this;
    announce(caller_shadow_, fiber.shadow, fiber.stack.get(), kStackBytes);
    switch_to(fiber);
    arrived(caller_shadow_, nullptr, nullptr);
  }

  void leave(Fiber& fiber, Meeting meeting) {
    set_meeting(fiber, meeting);
    void* const caller_shadow = caller_shadow_;
    const void* const caller_stack = caller_stack_;
    const size_t caller_stack_bytes = caller_stack_bytes_;
    if (meeting == kReturn) release(&end_);  // nothing of the caller's memory is read after this
    announce(fiber.shadow, caller_shadow, caller_stack, caller_stack_bytes, meeting == kReturn);
    switch_from(fiber);
    arrived(fiber.shadow, nullptr, nullptr);
  }

  static void set_meeting(Fiber& fiber, Meeting meeting) {
    const Unseen unseen;
    fiber.meeting = meeting;
  }

  static void enter() {
    Fibers& self = *current();
    self.arrived(nullptr, &self.caller_stack_, &self.caller_stack_bytes_);
    const int lane = self.lane_;
    acquire(&self.begin_);
    self.body_(lane);
    self.leave(self.fibers_[lane], kReturn);
  }

  [[noreturn, gnu::noinline, gnu::no_sanitize_thread]] static void go_to(void** place) { __builtin_longjmp(place, 1); }

  [[gnu::noinline, gnu::no_sanitize_thread]] void switch_to(Fiber& fiber) {
    if (__builtin_setjmp(caller_) != 0) return;
    if (fiber.started) go_to(fiber.place);
    fiber.started = true;
    setcontext(&fiber.start);
  }

  [[gnu::noinline, gnu::no_sanitize_thread]] void switch_from(Fiber& fiber) {
    if (__builtin_setjmp(fiber.place) == 0) go_to(caller_);
  }

  static Fibers*& current() {
    static thread_local Fibers* fibers;
    return fibers;
  }

  // ---- what the sanitizers are told: changes of stacks, threads, meetings; switching itself is none of their business

#if defined(__SANITIZE_ADDRESS__)
  static void* new_shadow() { return nullptr; }
  static void* current_shadow() { return nullptr; }
  static void delete_shadow(void*) {}
  static void announce(void*& from, void*, const void* stack, size_t bytes, bool forever = false) {
    __sanitizer_start_switch_fiber(forever ? nullptr : &from, stack, bytes);
  }
  static void arrived(void* shadow, const void** from, size_t* bytes) {
    __sanitizer_finish_switch_fiber(shadow, from, bytes);
  }
#elif defined(__SANITIZE_THREAD__)
  static void* new_shadow() { return __tsan_create_fiber(0); }
  static void* current_shadow() { return __tsan_get_current_fiber(); }
  static void delete_shadow(void* shadow) { __tsan_destroy_fiber(shadow); }
  static void announce(void*&, void* to, const void*, size_t, bool = false) {
    __tsan_switch_to_fiber(to, __tsan_switch_to_fiber_no_sync);
  }
  static void arrived(void*, const void**, size_t*) {}
#else
  static void* new_shadow() { return nullptr; }
  static void* current_shadow() { return nullptr; }
  static void delete_shadow(void*) {}
  static void announce(void*&, void*, const void*, size_t, bool = false) {}
  static void arrived(void*, const void**, size_t*) {}
#endif

#if defined(__SANITIZE_THREAD__)
  static void release(char* point) { __tsan_release(point); }
  static void acquire(char* point) { __tsan_acquire(point); }

  // What the caller of the lanes does is no part of the kernel.
  struct Unseen {
    Unseen() { AnnotateIgnoreReadsBegin(__FILE__, __LINE__), AnnotateIgnoreWritesBegin(__FILE__, __LINE__); }
    ~Unseen() { AnnotateIgnoreReadsEnd(__FILE__, __LINE__), AnnotateIgnoreWritesEnd(__FILE__, __LINE__); }
  };
#else
  static void release(char*) {}
  static void acquire(char*) {}

  struct Unseen {
    Unseen() {}  // not trivial: no warning of an unused variable
  };
#endif

  std::mt19937_64& random_;
  std::function<void(int)> body_;
  std::vector<Fiber> fibers_;
  std::vector<Value> seen_;
  int lane_ = 0;  // that is being started
  void* caller_[5];
  void* caller_shadow_ = nullptr;
  const void* caller_stack_ = nullptr;
  size_t caller_stack_bytes_ = 0;
  int64_t round_ = 0;
  char begin_ = 0, end_ = 0, points_[2] = {};  // where the lanes meet, for ThreadSanitizer
};

#endif

}  // namespace raggedbev
