"""Define the `launch` section: in how many processes, and on which machines, the training stages run."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from rlhfctl.recipe.sections.base import Rule, Section


class Launch(Section):
    """Several processes or machines for training. Results stay the same but for rounding, and no stage runs again."""

    num_processes: int = Field(
        1, ge=1, description="Number of processes that share each training stage, on all machines together: one per "
        "GPU, or fewer than one per CPU core."
    )  # fmt: skip
    accelerate_config: str | None = Field(
        None, min_length=1, description="A file of `accelerate config`, for example with FSDP (null: plain data "
        "parallelism)."
    )  # fmt: skip
    shard: bool = Field(
        False, description="Whether the weights themselves are divided over the processes (FSDP2), for a model that "
        "one device cannot hold. Each layer is gathered where it is used."
    )  # fmt: skip
    num_machines: int = Field(1, ge=1, description="Number of machines; the command is given on each of them.")
    main_process_ip: str | None = Field(
        None, min_length=1, description="Address of the first machine, which the others can reach."
    )
    main_process_port: int = Field(
        29500, ge=1, le=65535, description="Port of the first machine on which the others ask what to do."
    )

    @property
    def local_processes(self) -> int:
        """Number of processes on each machine."""
        return self.num_processes // self.num_machines

    RULES: ClassVar[tuple[Rule[Launch], ...]] = (
        Rule(
            "shard",
            "one process has nobody to divide the weights with",
            "set {at}.num_processes (--num-processes), or leave shard out",
            lambda launch: launch.shard and launch.num_processes == 1,
            about=("num_processes",),
        ),
        Rule(
            "shard",
            "{at}.accelerate_config would divide the weights of the trainers in a way of its own",
            "leave out one of the two",
            lambda launch: launch.shard and launch.accelerate_config is not None,
            about=("accelerate_config",),
        ),
        Rule(
            "num_processes",
            "{num_processes} processes cannot be shared equally among {num_machines} machines",
            "use a multiple of {num_machines}",
            lambda launch: launch.num_processes % launch.num_machines != 0,
            about=("num_machines",),
        ),
        Rule(
            "num_machines",
            "several machines need the address of the first one",
            "set {at}.main_process_ip (--main-process-ip)",
            lambda launch: launch.num_machines > 1 and launch.main_process_ip is None,
            about=("main_process_ip",),
        ),
        Rule(
            "main_process_ip",
            "is for several machines, but {at}.num_machines is 1",
            "set num_machines, or remove it",
            lambda launch: launch.num_machines == 1 and launch.main_process_ip is not None,
            about=("num_machines",),
        ),
    )
