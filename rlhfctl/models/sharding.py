"""Divide the weights of a model over the processes, a layer at a time (FSDP2, torch's `fully_shard`).

    matrices of base*        each process holds 1 / N of each; a layer is gathered for its forward and its backward
    embeddings, output layer one group with them: gathered for a forward, and until its backward is done
    adapters, heads, norms   whole in every process

Adapters, heads and vectors are small: they stay whole, and their gradients are added up as without sharding
(processes.py). With LoRA nothing that is trained is divided, so optimizer, checkpoints and published adapters stay
plain. Where all weights of a model are trained, torch adds up the gradients of its matrices while it divides them, and
what is saved is gathered first: a checkpoint is the same with and without sharding.

To gather is collective: all processes must do the same forwards. But they have different numbers of rows, and their
responses end at different steps. Inside `in_step` each process therefore tells the others before each forward which
model it runs. A process that has finished its part runs a forward of one token, which counts nothing, for as long as
another one still works.

Leaves out the exchange of messages (processes.py) and the choice of what is divided (stages/ppo.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhfctl.errors import EngineError
from rlhfctl.models import architecture, devices, processes
from rlhfctl.models.adapters import is_adapter_parameter
from rlhfctl.models.heads import AdapterScorer
from rlhfctl.models.processes import Processes

_MATRIX = 2  # dimensions of the smallest parameter that is divided
_HEAD = "rlhfctl_head"


# ---------------------------------------------------------------- dividing


def shard(models: Iterable[Any], *, average: bool = False) -> None:
    """Divide the matrices of language models and reward models over the processes, in place, until `reunite`.

    Of a model with adapters those of the base alone. Which parameters are trained must be set before. A scorer on the
    trunk of another model (heads.AdapterScorer) stays whole. All move to the device that computes. Gradients of divided
    weights become the sum over the processes, or with `average` the mean. Collective. EngineError if an architecture
    has no layers that can be told apart.
    """
    for model in models:
        if isinstance(model, AdapterScorer):
            model.to(devices.device())
        else:
            _shard(model, Processes.here().count if average else 1)


def _shard(model: Any, divisor: int) -> None:
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    trunk = architecture.backbone(inner)
    if isinstance(trunk, FSDPModule):
        return
    layers = [module for module in trunk.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise EngineError(
            f"the architecture {type(trunk).__name__} has no layers that can be divided over processes",
            where="launch.shard",
            fix="set it to false: each process then holds the whole model",
        )
    _remember(model)
    device = devices.device()
    mesh = init_device_mesh(device.type, (Processes.here().count,))
    small = {
        parameter
        for name, parameter in model.named_parameters()
        if is_adapter_parameter(name) or parameter.dim() < _MATRIX or (parameter.requires_grad and model is not inner)
    }
    for parameter in small:
        parameter.data = parameter.data.to(device)
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=small)
    head = inner.get_output_embeddings()
    if head is not None:  # beside the embeddings, with which it may share its weights
        trunk.add_module(_HEAD, head)
    fully_shard(trunk, mesh=mesh, reshard_after_forward=False, ignored_params=small)
    if head is not None:
        delattr(trunk, _HEAD)
    for module in (*layers, trunk):
        module.set_gradient_divide_factor(float(divisor))
        module.set_force_sum_reduction_for_comms(True)  # gloo cannot average
    _STEPS.follow(trunk, head)


def reunite(models: Iterable[nn.Module], *, here: bool = True) -> None:
    """Undo `shard`: gather the weights of `models` on the CPU, one tensor at a time, and make them plain models again.

    Collective. With `here` False this process only helps the others: its models stay divided, and can run no more.
    """
    for model in models:
        if isinstance(model, AdapterScorer) and here:
            model.to("cpu")
        divided = [module for module in model.modules() if isinstance(module, FSDPModule)]
        for module in divided:
            release(module)
        gathered: dict[int, nn.Parameter] = {}
        for one in model.parameters():
            if isinstance(one, DTensor):
                value = one.detach().full_tensor()
                if here:
                    gathered[id(one)] = nn.Parameter(value.to("cpu"), requires_grad=one.requires_grad)
        for module in divided:
            _STEPS.forget(module)
        if not here or not divided:
            continue
        for module in model.modules():
            _plain(module)
            for name, parameter in module._parameters.items():
                module._parameters[name] = gathered.get(id(parameter), parameter)
        model.to("cpu")


_HOOKS = (
    "_forward_pre_hooks", "_forward_hooks", "_state_dict_pre_hooks", "_state_dict_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip
_BEFORE = "_rlhfctl_before"  # what `_remember` leaves in a module


def _remember(model: nn.Module) -> None:
    """Note the class and the hooks of each module: torch adds its own, and has no way to take them off again."""
    for module in model.modules():
        vars(module)[_BEFORE] = (type(module), {name: set(getattr(module, name)) for name in _HOOKS})


def _plain(module: nn.Module) -> None:
    """Give a module the class and the hooks that it had before."""
    kind, kept = vars(module).pop(_BEFORE, (None, {}))
    if isinstance(module, FSDPModule):
        module.__class__ = kind
    for name, keys in kept.items():
        hooks = getattr(module, name)
        for key in [key for key in hooks if key not in keys]:
            del hooks[key]
    for mark in ("_is_fsdp_managed_module", "_fsdp_use_orig_params"):  # transformers reads them
        vars(module).pop(mark, None)


def is_sharded(module: nn.Module) -> bool:
    """Tell whether a part of the weights of `module` is in other processes at the moment."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def share_here(modules: Iterable[nn.Module]) -> float:
    """Return the share of all numbers in the parameters of `modules` that this process holds: 1 if nothing is divided.

    A parameter of several modules counts once.
    """
    every = {id(one): one for module in modules for one in module.parameters()}.values()
    own = sum(part_here(one).numel() for one in every)
    return own / max(1, sum(one.numel() for one in every))


def told(modules: Iterable[nn.Module]) -> str:
    """Say what share of the weights of `modules` a process holds, the one that holds most. Collective."""
    share, here = share_here(modules), Processes.here()
    most = max(here.over(range(here.count), lambda _: [share]))
    return f"each of {here.count} processes holds at most {most:.3f} of the weights"


# ---------------------------------------------------------------- divided tensors


def is_divided(tensor: Any) -> bool:
    """Tell whether this process holds a part of `tensor` only."""
    return isinstance(tensor, DTensor)


def part_here(tensor: Tensor) -> Tensor:
    """Return the part of `tensor` that this process holds: all of it where it is not divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(value: Any) -> Any:
    """Gather the divided tensors in `value`, which may be nested in dicts and lists. Collective where there are any."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {name: whole(one) for name, one in value.items()}
    return [whole(one) for one in value] if isinstance(value, list) else value


def overwrite(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into `target`, of which this process may hold a part."""
    with torch.no_grad():
        target.copy_(_divided_as(target, value) if isinstance(target, DTensor) else value)


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load the whole state of an optimizer; each process keeps its part of what belongs to divided parameters.

    The way in which it steps (torch's `fused` and `foreach`) stays that of `optimizer`.
    """
    ways = [{way: group[way] for way in ("fused", "foreach")} for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(state))
    for group, own in zip(optimizer.param_groups, ways, strict=True):
        group.update(own)
    for parameter, kept in optimizer.state.items():
        if isinstance(parameter, DTensor):
            for name, value in kept.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    kept[name] = _divided_as(parameter, value)


def _divided_as(like: DTensor, value: Tensor) -> DTensor:
    value = value.to(device=like.device, dtype=like.dtype)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def weights_to_save(model: nn.Module) -> dict[str, Tensor] | None:
    """Gather the weights of a divided model on the CPU of the first process, one tensor at a time. Collective.

    None for a model that is not divided, and for one with adapters, which alone are saved and are whole.
    """
    settle()  # to read the state does it too, and not all processes read it
    if isinstance(model, PeftModel) or not any(map(is_divided, model.state_dict().values())):
        return None
    state, first = {}, Processes.here().first
    for name, value in model.state_dict().items():
        gathered = whole(value)
        if first:
            state[name] = gathered.to("cpu", copy=True).contiguous()
    return state


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
    """Scale the gradients so that their norm is at most `limit`; return the norm before. Collective.

    As torch's clip_grad_norm_, where some of the parameters are divided.
    """
    if not any(isinstance(one, DTensor) for one in parameters):
        return nn.utils.clip_grad_norm_(parameters, limit)
    own = [one.grad.to_local() for one in parameters if isinstance(one.grad, DTensor)]
    others = [one.grad for one in parameters if one.grad is not None and not isinstance(one.grad, DTensor)]
    squares = sum((one.double().square().sum() for one in own), torch.zeros((), dtype=torch.float64))
    Processes.here().sum_over([squares])
    squares = squares + sum(one.double().square().sum() for one in others)
    norm = squares.sqrt()
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    for gradient in (*own, *others):
        gradient.mul_(scale.to(gradient.dtype))
    return norm.to(torch.float32)


# ---------------------------------------------------------------- keeping step


class _Steps:
    """The divided models of this process, and whether their forwards are announced to the other processes."""

    def __init__(self) -> None:
        self.trunks: list[Any] = []
        self.heads: list[Any] = []  # the output layer of each, or None
        self.announcing = False
        self.used: list[Any] = []  # trunks with a forward inside the present block

    def follow(self, trunk: Any, head: Any) -> None:
        """Announce the forwards of `trunk` from now on, where `in_step` asks for it."""
        self.trunks.append(trunk)
        self.heads.append(head)
        trunk.register_forward_pre_hook(self._before_forward, prepend=True)
        processes.keep_in_step_with(self.in_step)

    def forget(self, trunk: Any) -> None:
        """Forget a trunk that is whole again."""
        if trunk in self.trunks:
            number = self.trunks.index(trunk)
            del self.trunks[number], self.heads[number]

    def _before_forward(self, trunk: nn.Module, args: Any) -> None:
        if self.announcing:
            self._tell(2 * self.trunks.index(trunk) + torch.is_grad_enabled())
            self.used.append(trunk)

    def _tell(self, what: int | None) -> int | None:
        """Tell the others which forward comes next (None: none is left); return what any of them runs."""
        told = torch.zeros(2 * len(self.trunks))
        if what is not None:
            told[what] = 1.0
        Processes.here().sum_over([told])
        running = told.nonzero().flatten().tolist()
        if len(running) > 1:
            raise RuntimeError("processes run different models at the same time")
        return running[0] if running else None

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Let each process do its own number of forwards inside the block; it ends when all have done theirs."""
        self.announcing, self.used = True, []
        try:
            yield
        finally:
            self.announcing = False
        while (running := self._tell(None)) is not None:
            number, backward = divmod(running, 2)
            _blank_forward(self.trunks[number], self.heads[number], backward=bool(backward))
            self.used.append(self.trunks[number])
        for trunk in {id(one): one for one in self.used}.values():
            release(trunk)


_STEPS = _Steps()


def settle() -> None:
    """Release all divided models, so that their parameters are the divided ones, which are trained and loaded.

    All processes must do so at the same time: one that is still gathered would not take part in the next gathering.
    """
    for trunk in _STEPS.trunks:
        release(trunk)


def release(module: Any) -> None:
    """Drop the parts of other processes that a forward without a backward has left: embeddings and output layer."""
    module.set_reshard_after_forward(True, recurse=False)  # or torch leaves them where they are
    module.reshard()
    module.set_reshard_after_forward(module not in _STEPS.trunks, recurse=False)


def _blank_forward(trunk: Any, head: Any, *, backward: bool) -> None:
    """Run one token through a divided model, so that other processes can gather its layers.

    With `backward` also backwards. It leaves no gradient; where divided weights are trained, it leaves zeros.
    """
    weight = next(trunk.parameters())
    ids = torch.zeros((1, 1), dtype=torch.long, device=weight.device)
    with torch.set_grad_enabled(backward):
        states: Tensor = trunk(input_ids=ids, use_cache=False).last_hidden_state
    if not backward:
        return
    trained = [one for one in trunk.parameters() if one.requires_grad]
    if any(isinstance(one, DTensor) for one in trained):  # its zeros are added to the gradients of the others
        nothing = states.sum() if head is None else head(states).sum()  # they all have a gradient for the output layer
        (nothing * 0.0).backward()
    else:
        torch.autograd.grad(states.sum() * 0.0, trained, allow_unused=True)
