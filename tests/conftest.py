"""Shared by all tests: a fixed seed, and the golden numbers."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

# Started in the background of a shell, tests would hand on to scripts that Ctrl-C is to be ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Without a GPU Triton's kernels run in its interpreter, which it reads when it is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Files of long tests start first, so that at the end no worker is busy alone.
LONG_FILES = ("test_training.py", "test_photos.py", "test_distributed.py", "test_demo_training.py",
              "test_nerv.py", "test_rendering.py", "test_visualize.py", "test_zipnerf.py")

GOLDEN = Path(__file__).parent / "golden" / "google_mipnerf.npz"


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: (LONG_FILES.index(item.path.name) if item.path.name in LONG_FILES
                                 else len(LONG_FILES)))


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def alarm():
    """Ends a test that waits for a pipe or a device, instead of hanging."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.fixture(scope="session")
def golden():
    """`golden("group.name")`: arrays of the official JAX code (google/mipnerf, commit 84c969e).

    Inputs and outputs in float32 on a CPU; NDC ran in float64.
    """
    with np.load(GOLDEN) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    return arrays.__getitem__
