"""Shared by the tests of training: the settings of a small run, and the command line in this process."""

import pytest

from deepseek.training import runs
from deepseek.training.config import TrainConfig
from deepseek.training.trainer import train

SMALL = dict(preset="tiny", max_seq_len=32, batch_size=4, max_steps=20, warmup_steps=3, lr=5e-3, save_every=5)
SMALL |= dict(eval_every=0, sample_every=0, probe="")


@pytest.fixture(scope="session")
def small_config(stories):
    """Makes the settings of a small run under `root`, with changes."""
    return lambda root, **changes: TrainConfig(**{"root": str(root), "data": [stories], **SMALL, **changes})


@pytest.fixture(scope="session")
def uninterrupted(small_config, tmp_path_factory):
    """(settings, steps) of a run that nothing interrupted."""
    config = small_config(tmp_path_factory.mktemp("runs"))
    return config, list(train(config))


@pytest.fixture
def config(small_config, tmp_path):
    """Makes the settings of a small run in a folder of its own, with changes."""
    return lambda **changes: small_config(tmp_path, **changes)


@pytest.fixture
def train_config(train_main):
    """Runs `python -m deepseek.train` with the given settings in this process."""
    return lambda config, resume=False: train_main(*runs.command(config, resume)[3:])
