from collections.abc import Callable
from typing import Any, final

import numpy.typing as npt

_Array = npt.NDArray[Any]
_Shape = tuple[int, ...]
_Activation = tuple[int, float, float]

class Refused(Exception): ...

@final
class ConvSpec:
    def __init__(
        self,
        spatial: int,
        transposed: bool,
        channels_last: bool,
        stride: _Shape,
        dilation: _Shape,
        pad_before: _Shape,
        pad_after: _Shape,
        output_padding: _Shape,
        groups: int,
        padding_mode: int,
        auto_padding: int,
        algorithm: int,
        precision: int,
        activation: _Activation,
        input_activation: _Activation,
    ) -> None: ...
    @property
    def spatial(self) -> int: ...
    @property
    def transposed(self) -> bool: ...
    @property
    def channels_last(self) -> bool: ...
    @property
    def stride(self) -> _Shape: ...
    @property
    def dilation(self) -> _Shape: ...
    @property
    def pad_before(self) -> _Shape: ...
    @property
    def pad_after(self) -> _Shape: ...
    @property
    def output_padding(self) -> _Shape: ...
    @property
    def groups(self) -> int: ...
    @property
    def padding_mode(self) -> int: ...
    @property
    def auto_padding(self) -> int: ...
    @property
    def algorithm(self) -> int: ...
    @property
    def precision(self) -> int: ...
    @property
    def activation(self) -> _Activation: ...
    @property
    def input_activation(self) -> _Activation: ...

@final
class ConvPlan:
    def run(self, x: _Array, residual: _Array | None, input_gate: _Array | None, out: _Array | None, /) -> _Array: ...
    @property
    def decision(self) -> dict[str, Any]: ...

def conv_forward(
    spec: ConvSpec,
    x: _Array,
    weight: _Array,
    bias: _Array | None,
    scale: _Array | None,
    shift: _Array | None,
    residual: _Array | None,
    input_scale: _Array | None,
    input_shift: _Array | None,
    input_gate: _Array | None,
    out: _Array | None,
    /,
) -> _Array: ...
def conv_backward_input(
    spec: ConvSpec, dy: _Array, weight: _Array, input_shape: Any, accumulate: bool, out: _Array | None, /
) -> _Array: ...
def conv_backward_weight(
    spec: ConvSpec, dy: _Array, x: _Array, weight_shape: Any, accumulate: bool, out: _Array | None, /
) -> _Array: ...
def conv_backward_bias(spec: ConvSpec, dy: _Array, accumulate: bool, out: _Array | None, /) -> _Array: ...
def conv_backward(
    spec: ConvSpec,
    dy: _Array,
    x: _Array,
    weight: _Array,
    needs_input: bool,
    needs_weight: bool,
    needs_bias: bool,
    into_input: _Array | None,
    into_weight: _Array | None,
    into_bias: _Array | None,
    /,
) -> tuple[_Array | None, _Array | None, _Array | None] | None: ...
def conv_plan(
    spec: ConvSpec,
    x_like: _Array | _Shape,
    weight: _Array,
    bias: _Array | None,
    scale: _Array | None,
    shift: _Array | None,
    input_scale: _Array | None,
    input_shift: _Array | None,
    gated: bool,
    /,
) -> ConvPlan: ...
def conv_decide(
    spec: ConvSpec,
    pass_: int,
    x: _Array | _Shape,
    weight: _Array | _Shape,
    y: _Array | _Shape | None,
    bias: _Array | None,
    scale: _Array | None,
    shift: _Array | None,
    residual: _Array | None,
    input_scale: _Array | None,
    input_shift: _Array | None,
    input_gate: _Array | None,
    /,
) -> dict[str, Any]: ...
def conv_products(
    spec: ConvSpec,
    pass_: int,
    x: _Array | _Shape,
    weight: _Array | _Shape,
    y: _Array | _Shape | None,
    bias: _Array | None,
    scale: _Array | None,
    shift: _Array | None,
    residual: _Array | None,
    input_scale: _Array | None,
    input_shift: _Array | None,
    input_gate: _Array | None,
    /,
) -> list[tuple[tuple[Any, ...], str, bool, list[tuple[str, float, str | None]]]]: ...
def make_tune_table(products: list[Any]) -> int: ...
def use_tune_table(table: int) -> int: ...
def output_shape(spec: ConvSpec, x_shape: _Shape, weight_shape: _Shape, /) -> _Shape: ...

@final
class PoolSpec:
    def __init__(
        self,
        spatial: int,
        channels_last: bool,
        kind: int,
        adaptive: bool,
        kernel: _Shape,
        stride: _Shape,
        dilation: _Shape,
        pad_before: _Shape,
        pad_after: _Shape,
        auto_padding: int,
        ceil_mode: int,
        count_include_pad: bool,
        divisor: int,
        norm: float,
    ) -> None: ...
    @property
    def spatial(self) -> int: ...
    @property
    def channels_last(self) -> bool: ...
    @property
    def kind(self) -> int: ...
    @property
    def adaptive(self) -> bool: ...
    @property
    def kernel(self) -> _Shape: ...
    @property
    def stride(self) -> _Shape: ...
    @property
    def dilation(self) -> _Shape: ...
    @property
    def pad_before(self) -> _Shape: ...
    @property
    def pad_after(self) -> _Shape: ...
    @property
    def auto_padding(self) -> int: ...
    @property
    def ceil_mode(self) -> int: ...
    @property
    def count_include_pad(self) -> bool: ...
    @property
    def divisor(self) -> int: ...
    @property
    def norm(self) -> float: ...

def pool_forward(spec: PoolSpec, x: _Array, return_indices: bool, out: _Array | None, /) -> Any: ...
def pool_forward_decide(spec: PoolSpec, x: _Array, return_indices: bool, out: _Array | None, /) -> dict[str, Any]: ...
def pool_backward(spec: PoolSpec, dy: _Array, x: Any, indices: _Array | None, out: _Array | None, /) -> _Array: ...
def pool_backward_decide(
    spec: PoolSpec, dy: _Array, x: Any, indices: _Array | None, out: _Array | None, /
) -> dict[str, Any]: ...
def unpool_forward(
    spec: PoolSpec, x: _Array, indices: _Array, output_shape: _Shape, out: _Array | None, /
) -> _Array: ...
def unpool_backward(spec: PoolSpec, dy: _Array, indices: _Array, out: _Array | None, /) -> _Array: ...
def num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def available_cores() -> int: ...
def set_thread_limit(n: int) -> int: ...
def available_isas() -> list[str]: ...
def isa_supported(isa: str) -> bool: ...
def current_isa() -> str: ...
def set_isa(isa: str) -> bool: ...
def isa_environment_error() -> str | None: ...
def cpu_name() -> str: ...
def cache_sizes() -> dict[str, int]: ...
def output_cache_stats() -> dict[str, int]: ...
def output_cache_clear() -> None: ...
def output_cache_set_cap(cap_bytes: int) -> None: ...
def workspace_stats(reset: bool = False) -> dict[str, int]: ...
def take_path() -> str: ...
def flush_denormals() -> bool: ...
def set_flush_denormals(on: bool) -> bool: ...
def run_fma_loop(dtype: str, iterations: int) -> float: ...
def run_copy(dst: _Array, src: _Array, mode: int) -> None: ...
def build_info() -> dict[str, str]: ...

@final
class SeparablePlan:
    @property
    def packed_bytes(self) -> int: ...
    @property
    def workspace_bytes(self) -> int: ...
    def run(self, x: _Array, residual: _Array | None, out: _Array | None, /) -> _Array: ...

def separable_forward(
    spec: ConvSpec,
    x: _Array,
    depthwise_weight: _Array,
    pointwise_weight: _Array,
    depthwise_bias: _Array | None,
    depthwise_scale: _Array | None,
    depthwise_shift: _Array | None,
    bias: _Array | None,
    scale: _Array | None,
    shift: _Array | None,
    residual: _Array | None,
    out: _Array | None,
    /,
) -> _Array: ...
def separable_forward_decide(
    spec: ConvSpec,
    x: _Array,
    depthwise_weight: _Array,
    pointwise_weight: _Array,
    depthwise_bias: _Array | None,
    depthwise_scale: _Array | None,
    depthwise_shift: _Array | None,
    bias: _Array | None,
    scale: _Array | None,
    shift: _Array | None,
    residual: _Array | None,
    out: _Array | None,
    /,
) -> dict[str, Any]: ...
def separable_plan(
    spec: ConvSpec,
    x_like: _Array | _Shape,
    depthwise_weight: _Array,
    pointwise_weight: _Array,
    depthwise_bias: _Array | None,
    depthwise_scale: _Array | None,
    depthwise_shift: _Array | None,
    bias: _Array | None,
    scale: _Array | None,
    shift: _Array | None,
    /,
) -> SeparablePlan: ...

@final
class InvertedPlan:
    @property
    def decision(self) -> dict[str, Any]: ...
    def run(self, x: _Array, residual: _Array | None, out: _Array | None, /) -> Any: ...

def inverted_forward(
    spec: ConvSpec,
    project_spec: ConvSpec,
    x: _Array,
    expand_weight: _Array,
    depthwise_weight: _Array,
    project_weight: _Array | None,
    expand_bias: _Array | None,
    expand_scale: _Array | None,
    expand_shift: _Array | None,
    depthwise_bias: _Array | None,
    depthwise_scale: _Array | None,
    depthwise_shift: _Array | None,
    bias: _Array | None,
    scale: _Array | None,
    shift: _Array | None,
    residual: _Array | None,
    out: _Array | None,
    /,
) -> Any: ...
def inverted_forward_decide(
    spec: ConvSpec,
    project_spec: ConvSpec,
    x: _Array,
    expand_weight: _Array,
    depthwise_weight: _Array,
    project_weight: _Array | None,
    expand_bias: _Array | None,
    expand_scale: _Array | None,
    expand_shift: _Array | None,
    depthwise_bias: _Array | None,
    depthwise_scale: _Array | None,
    depthwise_shift: _Array | None,
    bias: _Array | None,
    scale: _Array | None,
    shift: _Array | None,
    residual: _Array | None,
    out: _Array | None,
    /,
) -> dict[str, Any]: ...
def inverted_plan(
    spec: ConvSpec,
    project_spec: ConvSpec,
    x_like: _Array | _Shape,
    expand_weight: _Array,
    depthwise_weight: _Array,
    project_weight: _Array | None,
    expand_bias: _Array | None,
    expand_scale: _Array | None,
    expand_shift: _Array | None,
    depthwise_bias: _Array | None,
    depthwise_scale: _Array | None,
    depthwise_shift: _Array | None,
    bias: _Array | None,
    scale: _Array | None,
    shift: _Array | None,
    /,
) -> InvertedPlan: ...

@final
class NormSpec:
    def __init__(
        self,
        kind: int,
        channels_last: bool,
        groups: int,
        trailing: int,
        training: bool,
        eps: float,
        momentum: float,
        unbiased: bool,
        activation: _Activation,
    ) -> None: ...

def norm(
    spec: NormSpec,
    x: _Array,
    weight: _Array | None,
    bias: _Array | None,
    residual: _Array | None,
    running_mean: _Array | None,
    running_var: _Array | None,
    out: _Array | None,
    /,
) -> Any: ...
def norm_decide(
    spec: NormSpec,
    x: _Array,
    weight: _Array | None,
    bias: _Array | None,
    residual: _Array | None,
    running_mean: _Array | None,
    running_var: _Array | None,
    out: _Array | None,
    /,
) -> dict[str, Any]: ...
def norm_backward(
    spec: NormSpec,
    dy: _Array,
    x: _Array,
    weight: _Array | None,
    mean: _Array | None,
    inv_std: _Array | None,
    y: _Array | None,
    lower: float,
    upper: float,
    needs_input: bool,
    needs_weight: bool,
    needs_bias: bool,
    out: _Array | None,
    /,
) -> tuple[_Array | None, _Array | None, _Array | None]: ...
def norm_backward_decide(
    spec: NormSpec,
    dy: _Array,
    x: _Array,
    weight: _Array | None,
    mean: _Array | None,
    inv_std: _Array | None,
    y: _Array | None,
    lower: float,
    upper: float,
    needs_input: bool,
    needs_weight: bool,
    needs_bias: bool,
    out: _Array | None,
    /,
) -> dict[str, Any]: ...
def local_response_norm(
    channels_last: bool,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    x: _Array,
    dy: _Array | None,
    out: _Array | None,
    /,
) -> _Array: ...
def local_response_norm_decide(
    channels_last: bool,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    x: _Array,
    dy: _Array | None,
    out: _Array | None,
    /,
) -> dict[str, Any]: ...
def activation(activation: _Activation, x: _Array, out: _Array | None, /) -> _Array: ...
def activation_decide(activation: _Activation, x: _Array, out: _Array | None, /) -> dict[str, Any]: ...
def activation_backward(activation: _Activation, dy: _Array, x: _Array, out: _Array | None, /) -> _Array: ...
def activation_backward_decide(
    activation: _Activation, dy: _Array, x: _Array, out: _Array | None, /
) -> dict[str, Any]: ...
def add(activation: _Activation, x: _Array, y: _Array, out: _Array | None, /) -> _Array: ...
def add_decide(activation: _Activation, x: _Array, y: _Array, out: _Array | None, /) -> dict[str, Any]: ...
def softmax(x: _Array, axis: int, logarithm: bool, out: _Array | None, /) -> _Array: ...
def softmax_decide(x: _Array, axis: int, logarithm: bool, out: _Array | None, /) -> dict[str, Any]: ...
def softmax_backward(dy: _Array, y: _Array, axis: int, logarithm: bool, out: _Array | None, /) -> _Array: ...
def softmax_backward_decide(
    dy: _Array, y: _Array, axis: int, logarithm: bool, out: _Array | None, /
) -> dict[str, Any]: ...

@final
class DeviceView:
    def __init__(
        self,
        pointer: int,
        dtype: int,
        shape: _Shape,
        strides: _Shape | None,
        ordinal: int,
        writable: bool,
        owner: object,
    ) -> None: ...
    @staticmethod
    def from_dlpack(capsule: object) -> DeviceView: ...
    def dlpack(self) -> object: ...
    @property
    def pointer(self) -> int: ...
    @property
    def dtype(self) -> int: ...
    @property
    def shape(self) -> _Shape: ...
    @property
    def strides(self) -> _Shape: ...
    @property
    def ordinal(self) -> int: ...
    @property
    def writable(self) -> bool: ...
    @property
    def owner(self) -> Any: ...

def set_device_hook(hook: Callable[[tuple[Any, ...]], Any] | None) -> None: ...
def set_cuda_backend(backend: object) -> None: ...
