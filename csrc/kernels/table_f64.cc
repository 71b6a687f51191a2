#include "kernels/table.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
void fill_table(KernelTable<double>& table) { fill<double>(table); }
}  // namespace fastconv::FASTCONV_ISA_NS
