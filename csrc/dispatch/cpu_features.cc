#include "dispatch/cpu_features.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "fastconv/runtime.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#define FASTCONV_X86 1
#endif

namespace fastconv {
namespace dispatch {
namespace {

#ifdef FASTCONV_X86

// XCR0: the register states that the operating system saves at a context switch.
uint64_t xcr0() {
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

uint32_t detect_features() {
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
  const bool osxsave = c & 1u << 27, avx = c & 1u << 28, fma = c & 1u << 12;
  if (!osxsave || !avx) return 0;
  const uint64_t saved = xcr0();
  constexpr uint64_t kYmm = 0x06, kZmm = 0xE6;  // SSE and AVX; opmask and both halves of the ZMM file besides
  if ((saved & kYmm) != kYmm) return 0;
  uint32_t features = fma ? uint32_t{kFma} : 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return features;
  if (b & 1u << 5) features |= kAvx2;
  if ((saved & kZmm) == kZmm) {
    if (b & 1u << 16) features |= kAvx512f;
    if (b & 1u << 17) features |= kAvx512dq;
    if (b & 1u << 30) features |= kAvx512bw;
    if (b & 1u << 31) features |= kAvx512vl;
  }
  return features;
}

// The deterministic cache leaves share one layout: 4 on Intel, 0x8000001D on AMD.
CacheSizes cpuid_caches() {
  CacheSizes sizes = {0, 0, 0};
  uint32_t a, b, c, d;
  // AMD reports leaf 4 as all zero; 0x8000001D is valid where the topology extensions are.
  uint32_t leaf = 4;
  if (__get_cpuid(0x80000001, &a, &b, &c, &d) && (c & 1u << 22)) leaf = 0x8000001D;
  for (uint32_t index = 0; index < 16; ++index) {
    if (!__get_cpuid_count(leaf, index, &a, &b, &c, &d)) break;
    const uint32_t type = a & 0x1F, level = a >> 5 & 0x7;
    if (type == 0) break;
    if (type == 2) continue;  // instructions
    const int64_t ways = (b >> 22) + 1, partitions = (b >> 12 & 0x3FF) + 1, line = (b & 0xFFF) + 1;
    const int64_t bytes = ways * partitions * line * (int64_t{c} + 1);
    if (level == 1) sizes.l1d = bytes;
    if (level == 2) sizes.l2 = bytes;
    if (level == 3) sizes.l3 = bytes;
  }
  return sizes;
}

std::string detect_name() {
  uint32_t words[12];
  uint32_t a, b, c, d;
  if (!__get_cpuid(0x80000000, &a, &b, &c, &d) || a < 0x80000004) return "x86";
  for (uint32_t i = 0; i < 3; ++i) {
    __get_cpuid(0x80000002 + i, &words[4 * i], &words[4 * i + 1], &words[4 * i + 2], &words[4 * i + 3]);
  }
  char text[sizeof words + 1] = {};
  std::memcpy(text, words, sizeof words);
  std::string name(text);
  name.erase(0, name.find_first_not_of(' '));
  name.erase(name.find_last_not_of(' ') + 1);
  return name.empty() ? "x86" : name;
}

#else

uint32_t detect_features() { return 0; }

CacheSizes cpuid_caches() { return {0, 0, 0}; }

std::string detect_name() {
#ifdef __aarch64__
  return "aarch64";
#else
  return "unknown";
#endif
}

#endif

// The first word of a small text file; empty where it cannot be read.
std::string read_word(const std::string& path) {
  char text[64] = {};
  if (FILE* file = std::fopen(path.c_str(), "r")) {
    if (std::fscanf(file, "%63s", text) != 1) text[0] = 0;
    std::fclose(file);
  }
  return text;
}

CacheSizes sysfs_caches() {
  CacheSizes sizes = {0, 0, 0};
  for (int index = 0; index < 8; ++index) {
    const std::string base = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
    const std::string level = read_word(base + "level"), type = read_word(base + "type"),
                      size = read_word(base + "size");
    if (level.empty() || type == "Instruction") continue;
    char* unit = nullptr;
    int64_t bytes = std::strtoll(size.c_str(), &unit, 10);
    if (*unit == 'K') bytes <<= 10;
    if (*unit == 'M') bytes <<= 20;
    if (level == "1") sizes.l1d = bytes;
    if (level == "2") sizes.l2 = bytes;
    if (level == "3") sizes.l3 = bytes;
  }
  return sizes;
}

CacheSizes detect_caches() {
  // Where neither source knows a level (some virtual machines hide them), a small size that any current core has.
  constexpr CacheSizes kAssumed = {32 << 10, 512 << 10, 4 << 20};
  const CacheSizes cpuid = cpuid_caches(), sysfs = sysfs_caches();
  const auto first = [](int64_t x, int64_t y, int64_t z) { return x > 0 ? x : y > 0 ? y : z; };
  return {first(cpuid.l1d, sysfs.l1d, kAssumed.l1d), first(cpuid.l2, sysfs.l2, kAssumed.l2),
          first(cpuid.l3, sysfs.l3, kAssumed.l3)};
}

struct FeatureName {
  uint32_t feature;
  const char* name;
};
constexpr FeatureName kFeatureNames[] = {
    {kAvx2, "avx2"},         {kFma, "fma"},           {kAvx512f, "avx512f"},
    {kAvx512bw, "avx512bw"}, {kAvx512dq, "avx512dq"}, {kAvx512vl, "avx512vl"},
};

#ifdef FASTCONV_HAVE_AVX2
constexpr bool kHaveAvx2 = true;
#else
constexpr bool kHaveAvx2 = false;
#endif
#ifdef FASTCONV_HAVE_AVX512
constexpr bool kHaveAvx512 = true;
#else
constexpr bool kHaveAvx512 = false;
#endif

// One row an ISA, in the order of the enum, the best one last.
struct IsaRow {
  const char* name;
  bool compiled;
  uint32_t needs;
};
constexpr IsaRow kIsas[] = {
    {"portable", true, 0},
    {"avx2", kHaveAvx2, kAvx2 | kFma},
    {"avx512", kHaveAvx512, kAvx2 | kFma | kAvx512f | kAvx512bw | kAvx512dq | kAvx512vl},
};
constexpr int kIsaCount = sizeof kIsas / sizeof kIsas[0];

bool supported(const IsaRow& row) { return row.compiled && (cpu_features() & row.needs) == row.needs; }

struct Choice {
  Isa isa;
  std::string error;  // of FASTCONV_ISA
};

// FASTCONV_ISA, or the best ISA that this CPU has. Read once.
const Choice& initial_choice() {
  static const Choice choice = [] {
    Choice best = {Isa::portable, {}};
    for (int i = 0; i < kIsaCount; ++i) {
      if (supported(kIsas[i])) best.isa = static_cast<Isa>(i);
    }
    const char* wanted = std::getenv("FASTCONV_ISA");
    if (wanted == nullptr || *wanted == 0) return best;
    const std::string setting = std::string("FASTCONV_ISA=") + wanted;
    std::string names;
    for (int i = 0; i < kIsaCount; ++i) {
      const IsaRow& row = kIsas[i];
      names += (i > 0 ? ", " : "") + std::string(row.name);
      if (std::strcmp(wanted, row.name) != 0) continue;
      if (supported(row)) return Choice{static_cast<Isa>(i), {}};
      if (!row.compiled) {
        best.error = setting + ": this build of fastconv does not contain " + row.name;
        return best;
      }
      best.error = setting + ": this CPU (" + cpu_name() + ") or its operating system lacks";
      for (const FeatureName& feature : kFeatureNames) {
        if (row.needs & ~cpu_features() & feature.feature) best.error += std::string(" ") + feature.name;
      }
      return best;
    }
    best.error = setting + ": must be one of " + names;
    return best;
  }();
  return choice;
}

constexpr int32_t kUnset = -1;
std::atomic<int32_t> chosen_isa{kUnset};

}  // namespace

uint32_t cpu_features() {
  static const uint32_t features = detect_features();
  return features;
}

}  // namespace dispatch

using dispatch::chosen_isa;

const char* isa_name(Isa isa) { return dispatch::kIsas[static_cast<int>(isa)].name; }

bool isa_supported(Isa isa) { return dispatch::supported(dispatch::kIsas[static_cast<int>(isa)]); }

Isa current_isa() {
  const int32_t chosen = chosen_isa.load(std::memory_order_relaxed);
  return chosen == dispatch::kUnset ? dispatch::initial_choice().isa : static_cast<Isa>(chosen);
}

bool set_isa(Isa isa) {
  if (!isa_supported(isa)) return false;
  chosen_isa.store(static_cast<int32_t>(isa), std::memory_order_relaxed);
  return true;
}

const char* isa_environment_error() {
  const std::string& error = dispatch::initial_choice().error;
  return error.empty() ? nullptr : error.c_str();
}

const char* cpu_name() {
  static const std::string name = dispatch::detect_name();
  return name.c_str();
}

CacheSizes cache_sizes() {
  static const CacheSizes sizes = dispatch::detect_caches();
  return sizes;
}

}  // namespace fastconv
