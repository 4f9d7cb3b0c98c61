"""The networks that images are matched in and evaluated with."""

from fastdm.networks.architectures import build_convnet, build_network, evaluation_pool, network_names
from fastdm.networks.model import Block, Network, initialise

__all__ = ["Block", "Network", "build_convnet", "build_network", "evaluation_pool", "initialise", "network_names"]
