// Kernels with a bug each, which the host build has to find, and their corrected twins, which it has to let pass.
#pragma once
#include <string>

namespace fastconv::planted {

// "" where the kernel ran and its result was right, else what was found.
std::string run_planted(const std::string& name, bool corrected);

// "" where the arithmetic on indices is right, else what is not.
std::string check_index();

}  // namespace fastconv::planted
