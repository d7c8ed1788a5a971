"""TRL's DPOTrainer on rows that are encoded already, with base* as the reference.

The loss is TRL's: -log sigmoid(beta (log pi(w)/ref(w) - log pi(l)/ref(l))), where a log-probability is the sum over a
response's tokens (Rafailov et al. 2023, "Direct Preference Optimization", eq. 7). Two things differ from TRL's own use.
The rows come as ids, because only data/encoding.py turns rows into ids. And with LoRA the reference is the model with
its adapter off, not a frozen copy of the adapter, which would take memory for nothing: a new adapter changes nothing.
"""

from __future__ import annotations

import warnings
from typing import Any

from peft import PeftModel
from trl import DPOTrainer

_COPY = "ref"  # TRL's name of the adapter that it copies as the reference


class EncodedDpoTrainer(DPOTrainer):
    """DPOTrainer for rows of `prompt_ids`, `chosen_ids` and `rejected_ids`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.model, PeftModel) and _COPY in self.model.peft_config:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # peft says which adapter stays active
                self.model.delete_adapter(_COPY)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no card into checkpoints."""
