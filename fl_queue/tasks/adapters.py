"""
Adapters of peft in a task's model: how peft itself would save them, recorded with version 0.

peft is not imported here: a model that has its adapters was made by it in this process.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fl_queue.protocol.manifest import Adapters
from fl_queue.training.model_tensors import place_of, state_of


def adapters_of(model: nn.Module) -> Adapters | None:
    """
    Describe the active adapter of a model: peft's config of it, and peft's name of each of its tensors.

    The names are those that peft gives when it saves the adapter, matched by storage: it renames more than
    a suffix (``modules_to_save``).

    Returns:
        None of a model without peft's adapters.
    """
    peft: Any = sys.modules.get("peft")
    if peft is None:
        return None
    found: Any = next((one for one in model.modules() if isinstance(one, peft.PeftModel)), None)
    if found is None:
        return None
    adapter = found.active_adapters[0]
    # The base's embeddings are no adapters; whether its vocabulary was extended would be asked on a hub.
    saved: dict[str, Tensor] = peft.get_peft_model_state_dict(
        found, adapter_name=adapter, save_embedding_layers=False
    )
    ours = {place_of(name, tensor): name for name, tensor in sorted(state_of(model).items())[::-1]}
    names = {theirs: ours.get(place_of(theirs, tensor)) for theirs, tensor in saved.items()}
    return Adapters(
        _config(found.peft_config[adapter]),
        {theirs: name for theirs, name in sorted(names.items()) if name is not None},
    )


def _config(config: Any) -> dict[str, Any]:
    """The config as peft writes it, without folders of this machine."""
    with tempfile.TemporaryDirectory(prefix="fl-queue-") as folder:
        config.save_pretrained(folder)
        made: dict[str, Any] = json.loads((Path(folder) / "adapter_config.json").read_text())
    made["inference_mode"] = True  # As peft saves it, whatever the model is at now.
    base = made.get("base_model_name_or_path")
    if base and Path(base).exists():
        made["base_model_name_or_path"] = Path(base).name
    return made
