#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__) || defined(_M_X64)
#define COLBERT_FAST_X86 1
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#elif defined(__aarch64__) || defined(_M_ARM64)
#define COLBERT_FAST_ARM 1
#endif

namespace colbert_fast {

extern const Kernels kernels_scalar;
#if COLBERT_FAST_X86
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#elif COLBERT_FAST_ARM
extern const Kernels kernels_neon;
#endif

namespace {

#if COLBERT_FAST_X86
struct Cpuid {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  Cpuid(unsigned leaf, unsigned subleaf) {
#if defined(_MSC_VER)
    int r[4];
    __cpuidex(r, static_cast<int>(leaf), static_cast<int>(subleaf));
    eax = r[0], ebx = r[1], ecx = r[2], edx = r[3];
#else
    __cpuid_count(leaf, subleaf, eax, ebx, ecx, edx);
#endif
  }
};

// The registers that the operating system saves on a context switch (XCR0).
unsigned long long saved_state() {
#if defined(_MSC_VER)
  return _xgetbv(0);
#else
  unsigned lo, hi;
  __asm__("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return (static_cast<unsigned long long>(hi) << 32) | lo;
#endif
}

constexpr bool has(unsigned reg, unsigned bits) { return (reg & bits) == bits; }

void add_supported(std::vector<const Kernels *> &tables) {
  if (Cpuid(0, 0).eax < 7) return;
  const Cpuid basic(1, 0), extended(7, 0);
  constexpr unsigned kOsxsave = 1u << 27, kFma = 1u << 12, kF16c = 1u << 29, kAvx = 1u << 28;
  if (!has(basic.ecx, kOsxsave | kFma | kF16c | kAvx)) return;
  const unsigned long long state = saved_state();
  const bool avx2 = (state & 0x6) == 0x6 && has(extended.ebx, 1u << 5);
  // AVX-512 F, DQ, BW, VL and VNNI: Ice Lake, Zen 4 and later.
  const bool avx512 = avx2 && (state & 0xe6) == 0xe6 &&
                      has(extended.ebx, 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31) &&
                      has(extended.ecx, 1u << 11);
  if (avx512) tables.push_back(&kernels_avx512);
  if (avx2) tables.push_back(&kernels_avx2);
}
#elif COLBERT_FAST_ARM
void add_supported(std::vector<const Kernels *> &tables) { tables.push_back(&kernels_neon); }
#else
void add_supported(std::vector<const Kernels *> &) {}
#endif

const Kernels &find(const std::string &name) {
  std::string choices;
  for (const Kernels *table : available_kernels()) {
    if (name == table->name) return *table;
    choices += choices.empty() ? table->name : std::string(", ") + table->name;
  }
  throw std::runtime_error("ISA '" + name +
                           "' is unknown or not supported by this CPU; it has: " + choices);
}

const Kernels &choose() {
  const char *forced = std::getenv("COLBERT_FAST_ISA");
  if (forced == nullptr || *forced == '\0') return *available_kernels().front();
  return find(forced);
}

std::atomic<const Kernels *> active{nullptr};

} // namespace

std::vector<const Kernels *> available_kernels() {
  std::vector<const Kernels *> tables;
  add_supported(tables);
  tables.push_back(&kernels_scalar);
  return tables;
}

const Kernels &kernels() {
  const Kernels *table = active.load(std::memory_order_acquire);
  if (table == nullptr) {
    table = &choose();
    active.store(table, std::memory_order_release);
  }
  return *table;
}

void set_isa(const std::string &name) { active.store(&find(name), std::memory_order_release); }

} // namespace colbert_fast
