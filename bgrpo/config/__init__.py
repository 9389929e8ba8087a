"""The one typed configuration tree, a module for each part of it; here, what the rest of the package needs of it."""

from bgrpo.config.loading import (
    SHIPPED_CONFIGS,
    build_config,
    dotted_keys,
    drop_foreign_options,
    dump_config,
    load_config,
    refuse_repeated,
)
from bgrpo.config.pretraining import PretrainConfig
from bgrpo.config.problems import ProblemSource, TaskSection
from bgrpo.config.rewards import EMBEDDING_SIMILARITY, ORACLE, RANK_WIDTH, WIN_RATE, PartSection, RewardSection
from bgrpo.config.rollouts import RolloutSection
from bgrpo.config.training import TrainConfig
from bgrpo.config.upkeep import RunSection, TrackingSection

__all__ = [
    "EMBEDDING_SIMILARITY",
    "ORACLE",
    "RANK_WIDTH",
    "SHIPPED_CONFIGS",
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
    "load_config",
    "refuse_repeated",
]
