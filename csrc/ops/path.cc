#include "ops/path.h"

#include <utility>

namespace fastconv {
namespace ops {

constinit thread_local const char* running_path = "";

}  // namespace ops

const char* take_path() { return std::exchange(ops::running_path, ""); }

}  // namespace fastconv
