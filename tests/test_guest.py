"""A guest in somebody's program: no global setting changes or breaks a call, and a call leaves none changed."""

import contextlib
import hashlib
import os
import random
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastdm
from fastdm.compat import RealImages, evaluate_synset
from fastdm.data import Dataset
from fastdm.networks.architectures import build_network
from fastdm.networks.model import initialise

CONDENSE = {"ipc": 1, "iterations": 2, "batch_real": 4, "network": "ConvNetD1", "precision": "fp32", "device": "cpu"}


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (40, 3, 16, 16), dtype=np.uint8), np.arange(40) % 4


@pytest.fixture(scope="module")
def dataset(images: tuple[Any, Any]) -> Dataset:
    return fastdm.open_dataset((*images, *images))


def digest(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(tensor.detach().contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()


def call_condense(dataset: Dataset, folder: Path) -> str:
    return digest(fastdm.condense(dataset, **CONDENSE).images)


def call_condense_batch_norm(dataset: Dataset, folder: Path) -> str:
    return digest(fastdm.condense(dataset, **{**CONDENSE, "network": "ConvNetBN", "init": "noise"}).images)


def call_evaluate(dataset: Dataset, folder: Path) -> str:
    synthetic = fastdm.random_selection(dataset, 1)
    names = ["ConvNetD1", "ConvNetBN"]
    found = fastdm.evaluate(synthetic, dataset, networks=names, num_eval=2, epochs=2, device="cpu")
    return repr(found.accuracies)


def call_open_and_pack(dataset: Dataset, folder: Path) -> str:
    images = dataset.train.images.float() / 255
    opened = fastdm.open_dataset((images, dataset.train.labels))
    packed = fastdm.open_dataset(fastdm.pack(opened, folder / "a.fastdm", size=8).path)
    return digest(opened.train.images, packed.train.images) + repr((opened.mean, opened.std))


def call_augment(dataset: Dataset, folder: Path) -> str:
    x = (dataset.train.images[:6].float() / 255).requires_grad_(torch.is_grad_enabled())
    param = fastdm.ParamDiffAug()
    param.aug_mode = "M"
    return digest(fastdm.DiffAugment(x, "color_crop_cutout_flip_scale_rotate", seed=3, param=param))


def call_match(dataset: Dataset, folder: Path) -> str:
    real = RealImages(dataset)
    np_state = np.random.get_state()  # noqa: NPY002
    batches = [real.get_images(c, 4) for c in range(dataset.num_classes)]
    np.random.set_state(np_state)  # noqa: NPY002  its draws are NumPy's, as the public function's are
    network = build_network(
        "ConvNetD1", channels=3, num_classes=4, image_size=16, frozen=True, device="cpu", drawn=False
    )
    initialise(network, torch.tensor([0, 0], device="cpu"))
    images = torch.stack([batch[0] for batch in batches]).detach().clone().requires_grad_()
    loss = fastdm.dm_loss(network.embed, images, batches, "color_crop", 3)
    return digest(*batches, loss)


def call_evaluate_synset(dataset: Dataset, folder: Path) -> str:
    images, labels = dataset.train.images[:8].float() / 255, dataset.train.labels[:8]
    with torch.device("cpu"), torch.inference_mode(False):
        network = build_network("ConvNetD1", channels=3, num_classes=4, image_size=16, device="cpu", drawn=False)
        initialise(network, torch.tensor([0, 0]))
        network.classifier.bias.data.zero_()
    args = Namespace(device="cpu", lr_net=0.1, epoch_eval_train=2, batch_train=4, dsa=True, dsa_strategy="flip_crop")
    args.dsa_param = fastdm.ParamDiffAug()
    generator = torch.get_rng_state()
    torch.manual_seed(0)
    network, *accuracies = evaluate_synset(0, network, images, labels, [(images, labels)], args)
    torch.set_rng_state(generator)
    return digest(*network.parameters()) + repr(accuracies)


def call_trained(dataset: Dataset, folder: Path) -> str:
    pool = fastdm.train_pool(dataset, networks=1, epochs=1, states=2, network="ConvNetD1", device="cpu")
    recipe: dict[str, Any] = {**CONDENSE, "networks": "trained", "network": None, "ce_weight": 1.0, "partition": 2}
    return digest(pool.weights, fastdm.condense(dataset, pool=pool, **recipe).images)


def call_write_and_read(dataset: Dataset, folder: Path) -> str:
    synthetic = fastdm.random_selection(dataset, 1)
    read = []
    for name in ("a.safetensors", "a.pt"):
        synthetic.save(folder / name)
        read.append(fastdm.SyntheticSet.load(folder / name).images)
    for name in ("png", "a.npz"):
        fastdm.export(synthetic, folder / name)
        read.append(fastdm.open_dataset(folder / name).train.images)
    synthetic.save_grid(folder / "grid.png")
    pool = dataset.train
    return digest(*read, pool.gather(pool.draw(0, 0, 2), dtype=torch.float32, mean=dataset.mean, std=dataset.std))


CALLS = [
    call_condense,
    call_condense_batch_norm,
    call_evaluate,
    call_trained,
    call_open_and_pack,
    call_write_and_read,
    call_augment,
    call_match,
    call_evaluate_synset,
]


@contextlib.contextmanager
def setting(get: Callable[[], Any], put: Callable[[Any], Any], value: Any) -> Iterator[None]:
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


def attribute(owner: Any, name: str, value: Any) -> contextlib.AbstractContextManager[None]:
    return setting(lambda: getattr(owner, name), lambda new: setattr(owner, name, new), value)


SETTINGS: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "float64": lambda: setting(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "default device": lambda: torch.device("meta"),
    "deterministic": lambda: setting(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "tf32": lambda: attribute(torch.backends, "fp32_precision", "tf32"),
    "bf16 in float32": lambda: attribute(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),  # type: ignore[attr-defined]
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "anomaly": torch.autograd.detect_anomaly,
    "numpy raises": lambda: np.errstate(all="raise"),
    "warnings are errors": warnings.catch_warnings,
}


def state() -> dict[str, Any]:
    """What a call might change of the process."""
    return {
        "torch generator": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
        "numpy generator": repr(np.random.get_state()),  # noqa: NPY002
        "python generator": random.getstate(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "matmul": torch.backends.mkldnn.matmul.fp32_precision,  # type: ignore[attr-defined]
        "conv": torch.backends.mkldnn.conv.fp32_precision,  # type: ignore[attr-defined]
        "cuda matmul": torch.backends.cuda.matmul.fp32_precision,
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "folder": os.getcwd(),
        "umask": _umask(),
    }


def _umask() -> int:
    os.umask(before := os.umask(0))
    return before


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__.removeprefix("call_"))
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
def test_no_global_setting_changes_a_call(
    call: Callable[[Dataset, Path], str], name: str, dataset: Dataset, tmp_path: Path
) -> None:
    if name == "autocast" and call in (call_augment, call_open_and_pack, call_write_and_read):
        return  # nothing of theirs is autocast
    if name in ("autocast", "bf16 in float32") and call in (call_match, call_evaluate_synset):
        return  # the precision of the caller's own network is the caller's choice
    (tmp_path / "plain").mkdir()
    (tmp_path / "set").mkdir()
    plain = call(dataset, tmp_path / "plain")
    with SETTINGS[name]():
        if name == "warnings are errors":
            warnings.simplefilter("error")
        before = state()
        changed = call(dataset, tmp_path / "set")
        after = state()
    if call is call_augment:  # its draws are the global generator's, as the public function's are
        for generator in ("torch generator",):
            before.pop(generator), after.pop(generator)
    assert changed == plain
    assert after == before


def test_a_failed_call_leaves_nothing_changed(dataset: Dataset) -> None:
    class Failed(Exception):
        pass

    def fail(*_: object) -> None:
        raise Failed

    before = state()
    with pytest.raises(Failed):
        fastdm.condense(dataset, callback=fail, **CONDENSE)
    assert state() == before
