// Which instruction set runs, decided once when the library is loaded.
#include <atomic>
#include <cstring>

#include "interface.h"
#include "kernels.h"

namespace inazuma {

extern const Kernels kernels_portable;
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avx512, kernels_avx512vnni;
#endif

namespace {

bool runs_here(const Kernels& table) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (&table == &kernels_avx512vnni) return runs_here(kernels_avx512) && __builtin_cpu_supports("avx512vnni");
  if (&table == &kernels_avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (&table == &kernels_avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return &table == &kernels_portable;
}

// Best first.
const Kernels* const tables[] = {
#if defined(__x86_64__)
    &kernels_avx512vnni, &kernels_avx512, &kernels_avx2,
#endif
    &kernels_portable};

const Kernels* best() {
  for (const Kernels* table : tables)
    if (runs_here(*table)) return table;
  return &kernels_portable;
}

std::atomic<const Kernels*> current{best()};

}  // namespace

const Kernels& kernels() { return *current.load(std::memory_order_relaxed); }

bool use_kernels(const char* name) {
  for (const Kernels* table : tables)
    if (std::strcmp(table->name, name) == 0 && runs_here(*table)) {
      current = table;
      return true;
    }
  return false;
}

}  // namespace inazuma

const char* inazuma_kernels(void) { return inazuma::kernels().name; }

int inazuma_use_kernels(const char* name) { return inazuma::use_kernels(name); }
