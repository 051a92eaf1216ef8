// Which instruction set runs, decided once when the library is loaded.
#include <atomic>
#include <cstring>

#include "interface.h"
#include "kernels.h"
#include "linear.h"
#include "paged_kernels.h"

namespace inazuma {

extern const Kernels kernels_portable;
extern const LinearKernels linear_portable;
extern const PagedKernels paged_kernels_portable;
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avx512, kernels_avx512vnni;
extern const LinearKernels linear_avx2, linear_avx512, linear_avx512vnni, linear_avx512bf16;
extern const PagedKernels paged_kernels_avx2, paged_kernels_avx512, paged_kernels_avx512vnni;
#endif

namespace {

struct InstructionSet {
  const char* name;
  const Kernels& kernels;
  const LinearKernels& linear;
  const PagedKernels& paged;
  bool (*runs_here)();
};

#if defined(__x86_64__)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
bool has_bf16() { return has_vnni() && __builtin_cpu_supports("avx512bf16"); }
#endif

// Best first.
const InstructionSet sets[] = {
#if defined(__x86_64__)
    {"avx512bf16", kernels_avx512vnni, linear_avx512bf16, paged_kernels_avx512vnni, has_bf16},
    {"avx512vnni", kernels_avx512vnni, linear_avx512vnni, paged_kernels_avx512vnni, has_vnni},
    {"avx512", kernels_avx512, linear_avx512, paged_kernels_avx512, has_avx512},
    {"avx2", kernels_avx2, linear_avx2, paged_kernels_avx2, has_avx2},
#endif
    {"portable", kernels_portable, linear_portable, paged_kernels_portable, [] { return true; }}};

const InstructionSet* find(const char* name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
  for (const InstructionSet& set : sets)
    if ((!name || std::strcmp(set.name, name) == 0) && set.runs_here()) return &set;
  return nullptr;
}

std::atomic<const InstructionSet*> current{find(nullptr)};

const InstructionSet& in_use() { return *current.load(std::memory_order_relaxed); }

}  // namespace

const Kernels& kernels() { return in_use().kernels; }

const LinearKernels& linear_kernels() { return in_use().linear; }

const PagedKernels& paged_kernels() { return in_use().paged; }

bool use_kernels(const char* name) {
  const InstructionSet* set = find(name);
  if (set) current = set;
  return set;
}

const char* kernels_name() { return in_use().name; }

}  // namespace inazuma

int inazuma_interface(void) { return INAZUMA_INTERFACE; }

const char* inazuma_kernels(void) { return inazuma::kernels_name(); }

int inazuma_use_kernels(const char* name) { return inazuma::use_kernels(name); }
