"""One process of a training that torchrun has started: ``torchrun ... tests/training/rank.py FOLDER DEVICES NODES``."""

import sys
import warnings
from pathlib import Path

import torch

from tests.training.test_scale import Blobs, module, train

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder, devices, nodes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    train(folder, module(), Blobs(1), devices, 20, (), num_nodes=nodes, strategy="ddp")
