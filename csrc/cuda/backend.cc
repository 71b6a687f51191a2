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
  row.pool_forward = &pool_forward;
  row.pool_backward_workspace = &pool_backward_workspace;
  row.pool_backward = &pool_backward;
  row.unpool_forward_workspace = &unpool_forward_workspace;
  row.unpool_forward = &unpool_forward;
  row.unpool_backward = &unpool_backward;
  return row;
}

}  // namespace

const Backend backend = make_row();

}  // namespace fastconv::cuda
