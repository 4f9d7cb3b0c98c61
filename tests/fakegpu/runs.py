"""Whole runs on a small fake card: checkpoints, resuming, profiles, streams, evaluation. Each function is a check."""

import io
import json
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from fastdm.applications.pool import train_pool
from fastdm.applications.profiling import profile
from fastdm.condensation.build import build_step
from fastdm.condensation.loop import condense
from fastdm.condensation.settings import Settings
from fastdm.data.batches import ResidentImages
from fastdm.data.pool import Dataset
from fastdm.evaluation.measure import evaluate
from fastdm.evaluation.protocol import Protocol
from fastdm.evaluation.testing import Answers
from fastdm.evaluation.together import Together, networks_together
from fastdm.evaluation.training import LabelledImages, train_network
from fastdm.kernels.blocks import choice
from fastdm.networks.architectures import build_network
from fastdm.runs.run import Run
from fastdm.synthetic.initial import random_selection
from fastdm.system.device import precision_context
from tests.fakegpu.gpu import recorded
from tests.fakegpu.steps import SMALL, dataset

LARGE = (10, 20_000, 3, 64, 64)
"""2.3 GiB: more than half of a card of 4 GiB."""


def check(device: torch.device) -> Iterator[dict[str, Any]]:
    """A row for every check of this file, with what does not hold under `wrong`."""
    for run in (
        a_run_is_recorded_profiled_and_resumed,
        a_stream_serves_the_chosen_backend,
        a_stream_takes_no_memory_with_work_pending,
        a_pool_on_the_device_serves_as_it_is,
        a_second_condensation_has_the_same_plan,
        a_profile_without_kernel_times_is_written,
        training_waits_at_its_start_only,
        networks_are_trained_together,
        evaluation_uses_the_graph,
        a_pool_is_trained_by_a_graph,
        a_first_convolution_is_computed_twice_where_that_is_faster,
    ):
        wrong: list[str] = []
        # Nothing was computed: what is read from the card may be anything.
        finite = patch.object(Run, "_check_finite"), patch("fastdm.runs.run.math.isfinite", return_value=True)
        with recorded() as lines, finite[0], finite[1], patch.object(Answers, "accuracy", 0.5):
            try:
                run(device)
            except Exception as error:
                wrong.append(f"{type(error).__name__}: {error}"[:300])
        wrong += [f"illegal: {line.what}" for line in lines if line.kind == "ILLEGAL"][:1]
        yield {"name": run.__name__.replace("_", " "), "wrong": wrong}


def a_run_is_recorded_profiled_and_resumed(device: torch.device) -> None:
    options = {"ipc": 1, "batch_real": 16, "network": "ConvNet", "device": device, "backend": "triton"}
    data = dataset(*SMALL)
    with tempfile.TemporaryDirectory() as folder, _notes() as notes:
        condense(data, **options, iterations=6, save_path=folder, save_every=2, profile=range(2, 4), progress=True)
        assert {"trace.json", "memory.pickle"} <= {path.name for path in Path(folder, "profile").iterdir()}
        condense(data, **options, iterations=8, save_path=folder, resume=True, progress=True)
        assert len(Path(folder, "log.jsonl").read_text().splitlines()) >= 8
    assert not [note for note in notes if "without a CUDA graph" in note], notes


def a_stream_serves_the_chosen_backend(device: torch.device) -> None:
    data = dataset(*LARGE)
    for backend in ("triton", "auto"):
        with _notes() as notes:
            condense(data, ipc=1, batch_real=16, iterations=3, device=device, backend=backend, progress=True)
        assert [note for note in notes if "are streamed" in note], notes


def a_stream_takes_no_memory_with_work_pending(device: torch.device) -> None:
    """Memory that was freed while kernels of the default stream still write it, which the stream of copies passes."""
    pool = dataset(1, 4096, 3, 32, 32).train
    busy = torch.empty(pool.images.numel(), dtype=torch.uint8, device=device).fill_(1)
    pending = busy.data_ptr()
    del busy
    with closing(pool.stream([torch.arange(4096)] * 2, None, depth=2, device=device)) as batches:
        assert pending not in [batch.images.data_ptr() for batch in batches]


def a_pool_on_the_device_serves_as_it_is(device: torch.device) -> None:
    """However large it is, and whatever name the device goes by."""
    torch.cuda.set_device(device)
    data = dataset(*LARGE, device=str(device))
    step, _ = _build(data, device)
    assert isinstance(step._real, ResidentImages)
    assert step._real._images.data_ptr() == data.train.to("cuda").images.data_ptr() == data.train.images.data_ptr()
    step.close()
    condense(data, ipc=1, batch_real=16, iterations=2, device="cuda")
    torch.cuda.set_device(0)


def a_second_condensation_has_the_same_plan(device: torch.device) -> None:
    """The allocator keeps what the first one took: it must not look like memory that is gone."""
    plans = []
    for _ in range(3):
        step, plan = _build(dataset(100, 300, 3, 32, 32), device, batch_real=256)
        reason = step.capture()
        assert not reason, reason
        step.close()
        plans.append((plan.residence, plan.chunk_classes, plan.micro_batch))
        del step
    assert plans[0] == plans[1] == plans[2], plans


def a_profile_without_kernel_times_is_written(device: torch.device) -> None:
    """The fake card has no CUPTI, as a machine whose driver lets nobody profile."""
    with tempfile.TemporaryDirectory() as folder:
        result = profile(dataset(*SMALL), Settings(ipc=1, batch_real=16), device, Path(folder))
        assert result.graph
        assert "no times of kernels" in json.loads(Path(folder, "profile.json").read_text())["verdict"]


def training_waits_at_its_start_only(device: torch.device) -> None:
    """Two networks, since the first one brings constants to the device as well."""
    images = random_selection(dataset(*SMALL), ipc=10)
    examples = LabelledImages.of(images, images.mean, images.std, device)
    protocol = Protocol(("ConvNet",), "color_crop_cutout_flip_scale_rotate", 2, 3, 0.01, 32, 0, "tf32")
    with precision_context("tf32", device) as dtype:
        network = build_network("ConvNet", channels=3, num_classes=10, image_size=(32, 32), device=device)
        for number in range(2):
            with recorded() as lines:
                train_network(network, examples, protocol, number, dtype)
    waits = [line.what for line in lines if line.kind == "WAIT"]
    assert len(waits) <= 2, waits  # for its key, which is made twice; the training has 16 steps


def networks_are_trained_together(device: torch.device) -> None:
    """An update of 8 networks is the replay of a graph, and little else; an epoch of the 100 images has 1 to 13."""
    data = dataset(*SMALL)
    images = random_selection(data, ipc=10)
    examples = LabelledImages.of(images, images.mean, images.std, device)
    for kind, batch in (("dm", 256), ("dm", 32), ("idc", 8)):
        name, strategy = "ConvNet", "color_crop_cutout_flip_scale_rotate"
        protocol = Protocol((name,), strategy, 8, 20, 0.01, batch, 0, "tf32", kind)  # type: ignore[arg-type]
        with precision_context("tf32", device) as dtype:
            networks = [
                (n, build_network(name, channels=3, num_classes=10, image_size=(32, 32), device=device))
                for n in range(8)
            ]
            assert networks_together(networks[0][1], examples, protocol) >= 2
            trainings = Together(networks, examples, protocol, dtype)
            with recorded() as lines:
                trainings.run()
        kinds = [line.kind for line in lines]
        steps = protocol.steps(len(examples))
        assert kinds.count("GRAPH") == steps, kinds.count("GRAPH")
        # The clone of the graph's result; once the learning rate and the momentum of each network.
        assert kinds.count("KERNEL") + kinds.count("COPY") + kinds.count("FILL") <= steps + 8 * 40
        assert kinds.count("WAIT") == 0


def evaluation_uses_the_graph(device: torch.device) -> None:
    data = dataset(*SMALL)
    data = replace(data, test=data.train)
    images = random_selection(data, ipc=1)
    for num_eval in (1, 4):
        with recorded() as lines:
            found = evaluate(images, data, networks=["ConvNet"], num_eval=num_eval, epochs=9, checks=2, device=device)
        assert [line.kind for line in lines].count("GRAPH") == 10
        assert len(found.accuracies["ConvNet"]) == num_eval


def a_pool_is_trained_by_a_graph(device: torch.device) -> None:
    data = dataset(*SMALL)
    # No kernel has written the weights: they are what lay in memory, which may be no numbers.
    any_number = patch.object(torch.Tensor, "isfinite", lambda x: torch.ones_like(x, dtype=torch.bool))
    with recorded() as lines, any_number:
        pool = train_pool(data, networks=3, epochs=2, batch_train=32, states=4, network="ConvNet", device=device)
    assert [line.kind for line in lines].count("GRAPH") == 2 * 13
    assert pool.weights.shape[:2] == (3, 4)


def a_first_convolution_is_computed_twice_where_that_is_faster(device: torch.device) -> None:
    """Time is asked before the recording and never again: for real images, and for synthetic ones with gradient."""
    for is_faster in (False, True):
        asked = patch.object(choice, "_is_second_faster", return_value=is_faster)
        unknown = patch.multiple(choice, _measured={}, LEAST_STORED=0)
        with precision_context("bf16", device), unknown, asked as measured:
            step, _ = _build(dataset(*SMALL), device)
            reason = step.capture()
            assert not reason, reason
            step.release()
            with recorded() as lines:
                step(0)
            step.close()
        assert measured.call_count == 2, measured.call_count
        kernels = [line.what for line in lines if line.kind == "KERNEL"]
        assert kernels.count("triton conv_statistics_kernel") == 2 * is_faster, kernels
        assert kernels.count("triton fold_kernel") == is_faster, kernels
        assert not [line.what for line in lines if line.kind == "WAIT"]


def _build(data: Dataset, device: torch.device, batch_real: int = 16) -> Any:
    settings = Settings(ipc=1, batch_real=batch_real, init="noise").resolve(data, device)
    with precision_context(settings.precision, device) as dtype:
        return build_step(data, settings, device, dtype)


@contextmanager
def _notes() -> Iterator[list[str]]:
    """What a run says within the block."""
    notes: list[str] = []
    with redirect_stdout(io.StringIO()) as out:
        yield notes
    notes += [json.loads(line).get("note", "") for line in out.getvalue().splitlines()]
