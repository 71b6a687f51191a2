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
  row.softmax_run = &softmax_run;
  row.softmax_backward = &softmax_backward;
  row.norm_workspace = &norm_workspace;
  row.norm_run = &norm_run;
  row.norm_backward_workspace = &norm_backward_workspace;
  row.norm_backward = &norm_backward;
  row.response_run = &response_run;
  row.response_backward = &response_backward;
  row.conv_workspace = &conv_workspace;
  row.conv_run = &conv_run;
  row.conv_decide = &conv_decide;
  row.conv_backward_bias = &conv_backward_bias;
  row.conv_backward_workspace = &conv_backward_workspace;
  row.conv_backward = &conv_backward;
  row.separable_workspace = &separable_workspace;
  row.separable_run = &separable_run;
  row.inverted_workspace = &inverted_workspace;
  row.inverted_run = &inverted_run;
  return row;
}

}  // namespace

const Backend backend = make_row();

}  // namespace fastconv::cuda
