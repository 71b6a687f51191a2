#include "dispatch/kernel_table.h"

namespace fastconv {
namespace {

// Even filling a table is code of its ISA (GCC stores the pointers with 512-bit moves), so only those that the CPU has
// are filled.
template <class T>
struct AllTables {
  KernelTable<T> table[3] = {};
  AllTables() {
    auto fill = [this](Isa isa, void (*fill_table)(KernelTable<T>&)) {
      if (!isa_supported(isa)) return;
      KernelTable<T>& t = table[static_cast<int>(isa)];
      fill_table(t);
      t.isa = isa;
    };
    fill(Isa::portable, portable::fill_table);
#ifdef FASTCONV_HAVE_AVX2
    fill(Isa::avx2, avx2::fill_table);
#endif
#ifdef FASTCONV_HAVE_AVX512
    fill(Isa::avx512, avx512::fill_table);
#endif
  }
};

}  // namespace

template <class T>
const KernelTable<T>& kernel_table(Isa isa) {
  static const AllTables<T> all;
  return all.table[static_cast<int>(isa)];
}

template const KernelTable<float>& kernel_table<float>(Isa);
template const KernelTable<double>& kernel_table<double>(Isa);

}  // namespace fastconv
