// The CPU's row of the table of devices.
#include "fastconv/backend.h"

namespace fastconv {
namespace {

// An operation of the CPU, which has no queue.
template <auto kOperation>
struct OnCpu;
template <class... A, Status (*kOperation)(A...)>
struct OnCpu<kOperation> {
  static Status run(A... args, const Queue&) { return kOperation(args...); }
};
template <auto kOperation>
constexpr auto on_cpu = &OnCpu<kOperation>::run;

Backend make_row() {
  Backend row{};
  row.size = sizeof(Backend);
  row.name = "cpu";
  row.map_forward = on_cpu<&map_forward>;
  row.map_add = on_cpu<&map_add>;
  row.map_backward = on_cpu<&map_backward>;
  row.softmax_run = on_cpu<&softmax_run>;
  row.softmax_backward = on_cpu<&softmax_backward>;
  row.pool_forward = on_cpu<&pool_forward>;
  row.pool_backward = on_cpu<&pool_backward>;
  row.unpool_forward = on_cpu<&unpool_forward>;
  row.unpool_backward = on_cpu<&unpool_backward>;
  row.norm_run = on_cpu<&norm_run>;
  row.norm_backward = on_cpu<&norm_backward>;
  row.response_run = on_cpu<&response_run>;
  row.response_backward = on_cpu<&response_backward>;
  row.conv_run = on_cpu<&conv_run>;
  row.conv_decide = on_cpu<&conv_decide>;
  row.conv_backward_bias = on_cpu<&conv_backward_bias>;
  row.separable_run = on_cpu<&separable_run>;
  row.inverted_run = on_cpu<&inverted_run>;
  return row;
}

}  // namespace

const Backend cpu_backend = make_row();

}  // namespace fastconv
