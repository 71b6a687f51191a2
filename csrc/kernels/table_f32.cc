#include "kernels/table.inl.h"

namespace fastconv::FASTCONV_ISA_NS {
void fill_table(KernelTable<float>& table) { fill<float>(table); }
}  // namespace fastconv::FASTCONV_ISA_NS
