"""The network and its losses, in PyTorch."""
