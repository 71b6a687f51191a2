#include "cuda/launch.h"
#include "cuda/runtime.h"

namespace fastconv::cuda {
namespace {

Backend make_row() {
  Backend row{};
  row.size = sizeof(Backend);
  row.name = "cuda";
  row.enter = &enter_device;
  row.last_error = &last_error;
  row.map_forward = &map_forward;
  row.map_add = &map_add;
  row.map_backward = &map_backward;
  return row;
}

}  // namespace

const Backend backend = make_row();

}  // namespace fastconv::cuda
