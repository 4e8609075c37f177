"""The run time: safe checkpoints, exact resume, mixed precision and launching on any device. Knows nothing about segmentation."""

from .amp import MixedPrecisionOptimWrapper
from .api import build_runner, run_test, run_train
from .checkpoints import AtomicCheckpointHook, check_weights, read_checkpoint, write_text
from .config import load_config, metrics_of, use_tta
from .errors import CheckpointError, ConfigError, LinescanError, NonFiniteLossError
from .guards import FiniteLossHook
from .loops import ReplayEpochLoop, ReplayIterLoop
from .noise import quiet_imports, silence_warnings
from .optim import LinescanOptimWrapperConstructor, parameter_groups
from .randomness import RngStreamHook
from .runner import LinescanFlexibleRunner, LinescanRunner
from .safe_load import secure_loading
from .trials import best_checkpoint, train_and_test

__all__ = [
    "AtomicCheckpointHook",
    "CheckpointError",
    "ConfigError",
    "FiniteLossHook",
    "LinescanError",
    "LinescanFlexibleRunner",
    "LinescanOptimWrapperConstructor",
    "LinescanRunner",
    "MixedPrecisionOptimWrapper",
    "NonFiniteLossError",
    "ReplayEpochLoop",
    "ReplayIterLoop",
    "RngStreamHook",
    "best_checkpoint",
    "build_runner",
    "check_weights",
    "load_config",
    "metrics_of",
    "parameter_groups",
    "quiet_imports",
    "read_checkpoint",
    "run_test",
    "run_train",
    "secure_loading",
    "silence_warnings",
    "train_and_test",
    "use_tta",
    "write_text",
]
