"""What every test shares: the repository on the path, few threads, and a fixed seed."""
import random
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
torch.set_num_threads(1)           # the models are tiny: a second thread only waits


@pytest.fixture(autouse=True)
def fixed_seed():
    """Every test draws the same numbers, in full precision, whichever tests ran before it."""
    random.seed(0)
    torch.manual_seed(0)
    torch.set_autocast_enabled("cpu", False)
