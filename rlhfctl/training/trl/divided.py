"""Train weights that are divided over the processes (models/sharding.py) with TRL's trainers.

accelerate has FSDP for GPUs alone, and knows nothing of models that have parts of both kinds. So it sees plain data
parallelism: it averages the gradients of what is whole in every process, torch those of what is divided. The trainer
must then not fuse the steps of both kinds, and gathers what it saves: a checkpoint is that of one process.

With whole weights everything is the trainer's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from rlhfctl.models import build, sharding


def divide(model: Any) -> None:
    """Divide the weights of `model` over the processes, for a trainer with `DividedWeights`. Collective."""
    sharding.shard([model], average=True)
    # accelerate's data parallelism leaves these parameters alone (DistributedDataParallel reads this list).
    model._ddp_params_and_buffers_to_ignore = [
        name for name, parameter in model.named_parameters() if sharding.is_divided(parameter)
    ]


def reunite(model: Any) -> None:
    """Make `model` a plain model again, in every process. Collective."""
    sharding.reunite([model])
    del model._ddp_params_and_buffers_to_ignore


class DividedWeights:
    """A part of a Trainer: it trains, saves and loads weights that are divided over the processes."""

    model: Any
    optimizer: Any
    args: Any

    def _trains_divided(self) -> bool:
        return any(one.requires_grad and sharding.is_divided(one) for one in self.model.parameters())

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        optimizer: Any = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        if self._trains_divided():
            for group in optimizer.param_groups:
                group.update(fused=False, foreach=False)
        return optimizer

    def _clip_grad_norm(self, model: Any) -> Any:
        if self._trains_divided():
            return self._clipped(self.args.max_grad_norm)
        return super()._clip_grad_norm(model)  # type: ignore[misc]

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if self._trains_divided() and grad_norm is None:
            return self._clipped(float("inf"))
        return super()._get_grad_norm(model, grad_norm)  # type: ignore[misc]

    def _clipped(self, limit: float) -> Tensor:
        return sharding.clip_gradients([one for one in self.model.parameters() if one.requires_grad], limit)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        weights = sharding.weights_to_save(self.model) if state_dict is None else state_dict
        super()._save(output_dir, weights)  # type: ignore[misc]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        gathered = sharding.whole(self.optimizer.state_dict())
        with self._optimizer_with("state_dict", lambda: gathered):
            super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        load = partial(sharding.load_optimizer, getattr(self.optimizer, "optimizer", self.optimizer))
        with self._optimizer_with("load_state_dict", load):
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._trains_divided():
            build.load_weights(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    @contextmanager
    def _optimizer_with(self, name: str, method: Any) -> Iterator[None]:
        """Give the optimizer another method inside the block."""
        vars(self.optimizer)[name] = method
        try:
            yield
        finally:
            del vars(self.optimizer)[name]
