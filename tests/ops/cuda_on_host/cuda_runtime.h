// Stands in for the CUDA toolkit's header of the same name: runs kernels on the CPU, from their unmodified source.
//
// Every thread of a block is a fiber with a stack of its own. It runs until it meets the other lanes of its warp at a
// collective operation; which of the waiting fibers runs next is drawn at random from a seed, so that a missing
// synchronisation or a result that depends on the order shows. A warp whose lanes do not all arrive at the same
// collective is an error, as are lanes that wait for others that have ended. Only what csrc/cuda uses is here.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1) : x(x) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline dim3 threadIdx, blockIdx;

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorLaunchFailure = 719 };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

namespace on_host {

inline unsigned seed = 0;              // of the order of threads and blocks; 0: one after the other
inline int64_t int32_limit = 1 << 30;  // stands in for MMDET_DDETR_INT32_LIMIT
inline int launches = 0;               // so far
inline std::string error;              // of the last launch

constexpr int kWarp = 32;

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool waiting = false, ended = false;
  const char* collective = nullptr;  // it waits at
  uint64_t mailbox[2];               // what the last two shuffles of the thread gave
  int shuffles = 0;
};

struct Block {
  std::vector<Thread> threads;
  ucontext_t scheduler;
  Thread* running = nullptr;
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
};
inline Block block;

inline void entry() {
  block.body(block.argument);
  block.running->ended = true;
  swapcontext(&block.running->context, &block.scheduler);
}

inline void meet(const char* collective) {
  block.running->waiting = true;
  block.running->collective = collective;
  swapcontext(&block.running->context, &block.scheduler);
}

// Lets the lanes of complete warps go on; returns whether there were any.
inline bool release_warps() {
  bool released = false;
  for (size_t first = 0; first < block.threads.size(); first += kWarp) {
    Thread* warp = &block.threads[first];
    if (!std::all_of(warp, warp + kWarp, [](const Thread& lane) { return lane.waiting; })) continue;
    if (!std::all_of(warp, warp + kWarp, [&](const Thread& lane) { return lane.collective == warp->collective; })) {
      error = "the lanes of a warp wait at different collectives";
      return false;
    }
    for (int lane = 0; lane < kWarp; ++lane) warp[lane].waiting = false;
    released = true;
  }
  return released;
}

inline void run_block(unsigned threads, std::mt19937& random) {
  constexpr size_t kStack = 64 * 1024;
  block.threads.resize(threads);
  for (Thread& thread : block.threads) {
    if (!thread.stack) thread.stack.reset(new char[kStack]);
    thread.waiting = thread.ended = false;
    thread.shuffles = 0;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStack;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, entry, 0);
  }
  std::vector<unsigned> order(threads);
  std::iota(order.begin(), order.end(), 0u);
  while (true) {
    if (seed) std::shuffle(order.begin(), order.end(), random);
    bool ran = false;
    for (unsigned i : order) {
      Thread& thread = block.threads[i];
      if (thread.waiting || thread.ended) continue;
      block.running = &thread;
      threadIdx = dim3(i);
      swapcontext(&block.scheduler, &thread.context);
      ran = true;
    }
    const bool ended = std::all_of(order.begin(), order.end(), [](unsigned i) { return block.threads[i].ended; });
    if (ended) return;
    if (!release_warps() && !ran) {
      if (error.empty()) error = "lanes of a warp wait for others that have ended";
      return;
    }
    if (!error.empty()) return;
  }
}

template <typename T>
T shuffle_xor(T x, int mask) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  Thread& self = *block.running;
  const int turn = self.shuffles++ % 2;  // two mailboxes: a lane can be one shuffle ahead of another, not two
  memcpy(&self.mailbox[turn], &x, sizeof(x));
  const unsigned me = threadIdx.x;
  meet("__shfl_xor_sync");
  memcpy(&x, &block.threads[me ^ mask].mailbox[turn], sizeof(x));
  return x;
}

}  // namespace on_host

template <typename T>
T __shfl_xor_sync(unsigned, T x, int mask) {
  return on_host::shuffle_xor(x, mask);
}
inline void __syncwarp() { on_host::meet("__syncwarp"); }

template <typename T>
T __ldg(const T* address) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(T)) on_host::error = "a load of several bytes is not aligned";
  return *address;
}
template <typename T>
T atomicAdd(T* address, T x) {
  const T old = *address;
  *address = old + x;
  return old;
}
inline int atomicMax(int* address, int x) {
  const int old = *address;
  *address = std::max(old, x);
  return old;
}

template <typename Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Args), const Args& args) {
  struct Call {
    void (*kernel)(Args);
    const Args* args;
  } call = {kernel, &args};
  on_host::block.body = [](void* argument) {
    const Call& call = *static_cast<Call*>(argument);
    call.kernel(*call.args);
  };
  on_host::block.argument = &call;
  on_host::error.clear();
  ++on_host::launches;
  std::mt19937 random(on_host::seed);
  std::vector<unsigned> blocks(config->gridDim.x);
  std::iota(blocks.begin(), blocks.end(), 0u);
  if (on_host::seed) std::shuffle(blocks.begin(), blocks.end(), random);
  for (unsigned b : blocks) {
    blockIdx = dim3(b);
    on_host::run_block(config->blockDim.x, random);
    if (!on_host::error.empty()) return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}
