"""A pytest plugin, `-p on_device`: tensors and models are made on the device that TEST_DEVICE names."""

import os

import torch

torch.set_default_device(os.environ.get("TEST_DEVICE", "cpu"))
