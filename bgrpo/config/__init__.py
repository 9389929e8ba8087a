"""The one typed configuration tree; here, what the rest of the package needs of it.

| keys | module |
|---|---|
| ``algorithm``, ``steps``, ``epochs``, ``seed``; what must fit together; defaults of algorithms | :mod:`.training` |
| ``task.*`` | :mod:`.problems` |
| ``policy.*``, ``rollout.*``, ``verifier.*`` | :mod:`.rollouts` |
| ``reward.*``, ``reward_model.*``, ``advantage.*`` | :mod:`.rewards`, :mod:`.metric_names` |
| ``learner.*`` | :mod:`.learner`, :mod:`.loss`, :mod:`.lora` |
| ``evaluation.*``, ``checkpoint.*``, ``tracking.*``, ``budget.*``, ``run.*``, ``watchdog.*`` | :mod:`.upkeep` |
| those of ``bgrpo pretrain`` | :mod:`.pretraining` |
"""

from bgrpo.config.loading import (
    SHIPPED_CONFIGS,
    build_config,
    dotted_keys,
    drop_foreign_options,
    dump_config,
    load_config,
    refuse_repeated,
)
from bgrpo.config.metric_names import EMBEDDING_SIMILARITY, GRAM_METRICS, TEXT_METRICS, gram_metric, unknown_metric
from bgrpo.config.pretraining import PretrainConfig
from bgrpo.config.problems import ProblemSource, TaskSection
from bgrpo.config.rewards import ORACLE, RANK_WIDTH, WIN_RATE, PartSection, RewardSection
from bgrpo.config.rollouts import RolloutSection
from bgrpo.config.training import TrainConfig
from bgrpo.config.upkeep import RunSection, TrackingSection

__all__ = [
    "EMBEDDING_SIMILARITY",
    "GRAM_METRICS",
    "ORACLE",
    "RANK_WIDTH",
    "SHIPPED_CONFIGS",
    "TEXT_METRICS",
    "WIN_RATE",
    "PartSection",
    "PretrainConfig",
    "ProblemSource",
    "RewardSection",
    "RolloutSection",
    "RunSection",
    "TaskSection",
    "TrackingSection",
    "TrainConfig",
    "build_config",
    "dotted_keys",
    "drop_foreign_options",
    "dump_config",
    "gram_metric",
    "load_config",
    "refuse_repeated",
    "unknown_metric",
]
