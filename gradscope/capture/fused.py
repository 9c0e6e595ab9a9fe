"""``fused=True``: a layer's weight gradient and its figures come from one product."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.modules import module as every_module

from gradscope.capture.call import Call
from gradscope.capture.forward import Forward
from gradscope.capture.fused_layer import can_be_fused, is_plain, pays, plain_gradients
from gradscope.capture.hook import Hook
from gradscope.capture.kept import Kept
from gradscope.capture.layout import BatchDim, Layout
from gradscope.capture.plan import Plan
from gradscope.contributions import Contribution, Dense
from gradscope.contributions.fused import FusedConvolution, FusedOuter, fused
from gradscope.rules.convolution import CONVOLUTION
from gradscope.rules.linear import LINEAR

if TYPE_CHECKING:
    from gradscope.capture.recorder import Recorder


class Lent(Kept):
    """A layer's inputs while its backward runs: the node that stands for the layer keeps them, as autograd would."""

    __slots__ = ("args",)

    def __init__(self, *args: Any) -> None:
        # Nothing is saved a second time.
        self.args = args

    def read(self) -> tuple[Any, ...]:
        """The inputs."""
        return self.args

    def pass_by(self) -> None:
        """Nothing is held for anyone else."""

    def release(self) -> None:
        """Let go."""
        self.args = ()


class FusedCall(Call):
    """One call of a layer whose backward is ours.

    Attributes:
        product: what is built once for autograd and for the figures, during the backward that may use it.
        bias: per-sample gradients of the bias, likewise.
        fusing: whether this backward may use them.
    """

    def __init__(self, recorder: Recorder, plan: Plan, forward: Forward, key: tuple[object, ...]) -> None:
        super().__init__(recorder, plan, forward, Lent(), key)
        self.fusing = False
        self.product: FusedOuter | FusedConvolution | None = None
        self.bias: Dense | None = None

    def _describe(self, grad: Tensor, layout: Layout) -> dict[str, Contribution]:
        described = super()._describe(grad, layout)
        if self.fusing and isinstance(layout, BatchDim):
            found = fused(described.get("weight"))
            if found is not None:
                described["weight"] = self.product = found
            bias = described.get("bias")
            self.bias = bias if isinstance(bias, Dense) else None
        return described

    def gradients(self, grad: Tensor, x: Tensor, weight: Tensor, *, once: bool) -> tuple[Tensor | None, Tensor | None]:
        """The weight's and the bias's gradient as far as the figures have come by them.

        Whatever fails on the way is said in the report, and leaves None: autograd's own formula takes its place.

        Args:
            grad: of the layer's output.
            x: what the layer read.
            weight: the layer's.
            once: whether what is found may be given to autograd.
        """
        self.fusing = once
        self.kept = Lent(x.detach())
        try:
            # Made here, since a call that held its own hook would live until the collector comes.
            self.recorder.shielded(self.on_grad)(grad)
            total = None if self.product is None else self.product.summed
            if total is not None and (total.shape != weight.shape or total.dtype != weight.dtype):
                total = None
            bias = self.bias.values.sum(0) if total is not None and self.bias is not None else None
        finally:
            self.fusing, self.product, self.bias = False, None, None
            if self.grad is None:
                # Otherwise it waits for another backward.
                self.kept.release()
        return total, bias


class FusedLayer(torch.autograd.Function):
    """The node that stands for a layer: its output is the layer's own, bit by bit."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, call: FusedCall) -> Tensor:
        """The output again, as an alias that is no view: what follows may change it in place."""
        # As autograd does: the weight is only read, and must only be unchanged, where the input asks for a gradient.
        ctx.save_for_backward(x, weight if x.requires_grad else None)
        ctx.set_materialize_grads(False)
        ctx.call = call
        return output.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of input, weight and bias, differentiable where that is asked for."""
        if grad is None:
            return (None,) * 5
        x, weight = ctx.saved_tensors
        call: FusedCall = ctx.call
        wanted = tuple(ctx.needs_input_grad[1:4])
        transformed = torch._C._functorch.peek_interpreter_stack() is not None
        once = wanted[1] and not torch.is_grad_enabled() and not transformed
        total, added = call.gradients(grad, x, call.plan.leaves["weight"].parameter, once=once)
        rest = (wanted[0], wanted[1] and total is None, wanted[2] and added is None)
        of_x, of_weight, of_bias = plain_gradients(call.plan.module, grad, x, weight, rest)
        if not wanted[2]:
            added = None
        return None, of_x, of_weight if total is None else total, of_bias if added is None else added, None


def fuse(
    recorder: Recorder, plan: Plan, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Tensor | None:
    """The output with one node of ours in the place of the layer's, or None where the layer is left to autograd.

    Only in ordinary windows: guard windows run as they would without ``fused``, and look at everything.
    """
    if recorder.guarding or recorder.options.subsample is not None or forward.samples == 1:
        return None
    module = plan.module
    if plan.rule not in (LINEAR, CONVOLUTION) or not can_be_fused(module) or not _untouched(recorder, plan):
        return None
    if len(args) != 1 or kwargs or not _ordinary(plan, args[0], output):
        return None
    key = (forward.calls.get(plan.name, 0) + 1, output.dim(), recorder.model.training, forward.samples)
    layout = plan.layouts.known((recorder.graph, key))
    if not isinstance(layout, BatchDim) or not layout.measured:
        return None
    if not pays(module, args[0], output, forward.samples, moments=recorder.options.moments):
        return None
    forward.calls[plan.name] = forward.calls.get(plan.name, 0) + 1
    call = FusedCall(recorder, plan, forward, key)
    bias = module._parameters.get("bias")
    fused_output: Tensor = FusedLayer.apply(output.detach(), args[0], module._parameters["weight"], bias, call)  # type: ignore[no-untyped-call]
    return fused_output


def _untouched(recorder: Recorder, plan: Plan) -> bool:
    """Whether the weight is the one that is watched, and nobody else has hung on the layer what would see its own node."""
    module, leaf = plan.module, plan.leaves.get("weight")
    if leaf is None or not leaf.wanted or module._parameters.get("weight") is not leaf.parameter:
        return False
    if module._backward_hooks or module._backward_pre_hooks:
        return False
    if (
        every_module._global_forward_hooks
        or every_module._global_backward_hooks
        or every_module._global_backward_pre_hooks
    ):
        return False
    first = next(iter(module._forward_hooks.values()), None)
    return isinstance(first, Hook) and first.owner is recorder


def _ordinary(plan: Plan, x: Any, output: Tensor) -> bool:
    """Whether this call is one of plain tensors in plain autograd: nothing casts, packs, transforms, traces or compiles it."""
    weight, bias = plan.module._parameters["weight"], plan.module._parameters.get("bias")
    if not (is_plain(x) and is_plain(output) and is_plain(weight) and (bias is None or is_plain(bias))):
        return False
    if not (x.dtype == output.dtype == weight.dtype and x.device == output.device == weight.device):  # type: ignore[union-attr]
        return False
    if output.grad_fn is None or "Compiled" in output.grad_fn.name() or output.dim() < 2:
        return False
    return (
        not torch.is_autocast_enabled(output.device.type)
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
        and forward_ad._current_level < 0
    )
