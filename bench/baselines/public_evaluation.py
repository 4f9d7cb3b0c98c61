"""Training and testing one network as the public code does it, with our `DiffAugment`."""

from argparse import Namespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastdm
from fastdm.augmentation import DSA_STRATEGY


def public_arguments(epochs: int) -> Namespace:
    """The public code's settings of a training, as its functions take them."""
    param = fastdm.ParamDiffAug()
    dsa = {"dsa": True, "dsa_strategy": DSA_STRATEGY, "dsa_param": param}
    return Namespace(device="cpu", lr_net=0.01, epoch_eval_train=epochs, batch_train=256, **dsa)


def public_evaluate(net: nn.Module, images: Tensor, labels: Tensor, tests: DataLoader[Any], args: Any) -> float:
    """The test accuracy, as the public code trains and tests."""
    net.train()
    loader = DataLoader(TensorDataset(images, labels), args.batch_train, shuffle=True)
    optimizer = torch.optim.SGD(net.parameters(), args.lr_net, momentum=0.9, weight_decay=5e-4)
    for epoch in range(args.epoch_eval_train + 1):
        for batch, truth in loader:
            output = net(fastdm.DiffAugment(batch, args.dsa_strategy, param=args.dsa_param))
            loss = nn.functional.cross_entropy(output, truth)
            loss.item()
            np.argmax(output.detach().cpu().numpy(), axis=-1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch == args.epoch_eval_train // 2 + 1:
            optimizer = torch.optim.SGD(net.parameters(), 0.1 * args.lr_net, momentum=0.9, weight_decay=5e-4)
    net.eval()
    found = [(int((net(x.to(images.device)).argmax(1).cpu() == truth).sum()), len(truth)) for x, truth in tests]
    return sum(right for right, _ in found) / sum(count for _, count in found)
