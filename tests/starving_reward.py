"""A reward actor that runs out of memory; actors import it by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bgrpo.distributed.rollout.scorers import RewardActor
from bgrpo.scoring.fixed_shapes import telling_memory


class Starving(RewardActor):
    """A reward actor whose models run out of memory: as often as the file ``starve`` in ``run.dir`` says."""

    def prepare(self) -> None:
        """Who will starve needs no models."""
        if not int(self._file.read_text()):
            super().prepare()

    def serve(self, request: Any) -> Any:
        if left := int(self._file.read_text()):
            self._file.write_text(str(left - 1))
            with telling_memory("reward model judge"):
                raise torch.OutOfMemoryError("CUDA out of memory")
        return super().serve(request)

    @property
    def _file(self) -> Path:
        return Path(self._judge.config.run.dir) / "starve"
