"""From settings to the step that they describe."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from fastdm.condensation.plan import MemoryPlan, make_plan
from fastdm.condensation.settings import Settings
from fastdm.condensation.step import Step
from fastdm.data.pool import Dataset, Pool
from fastdm.errors import FastDMError
from fastdm.networks.architectures import build_network
from fastdm.networks.drawn import BuiltNetworks, DrawnNetworks, RandomNetworks, TrainedNetworks
from fastdm.networks.own import Builder, build_own_frozen, can_be_drawn
from fastdm.networks.trained import NetworkPool
from fastdm.synthetic.initial import initial_images


def build_step(
    dataset: Dataset,
    settings: Settings,
    device: torch.device,
    dtype: torch.dtype,
    chunk_memory: int | None = None,
    pool: NetworkPool | None = None,
    part: Pool | None = None,
    own: Builder | None = None,
) -> tuple[Step, MemoryPlan]:
    """The step for resolved settings, at its initial images, and the plan that it follows.

    pool: the networks of networks="trained", which `matching_pool` has checked. part: the real images of those classes
    that are this process's, by default all. own: builds the random networks in place of the name in the settings.
    """
    if device.type == "cuda":
        # Memory that PyTorch keeps from earlier work would be split by tensors that stay, and be lost for a graph,
        # whose memory is its own.
        torch.cuda.empty_cache()
    networks = build_networks(dataset, settings, device, dtype, pool, own)
    if part is not None:
        check_shared(networks, settings)
    plan = plan_step(networks, dataset.train if part is None else part, settings, device, dtype, chunk_memory)
    images = initial_images(
        dataset, settings.ipc, settings.seed, init=settings.init, partition=settings.partition, device=device, part=part
    )
    return Step(dataset, images, networks, settings, plan, dtype, part), plan


def check_shared(networks: DrawnNetworks, settings: Settings) -> None:
    """Raise FastDMError for networks whose classes cannot be shared among ranks."""
    if networks.network.uses_batch_statistics:
        raise FastDMError(
            f"{settings.network} has BatchNorm, whose statistics are those of all classes together, but every rank has "
            "some of them only: choose a network with InstanceNorm, such as ConvNet, or a single rank"
        )


def plan_step(
    networks: DrawnNetworks,
    real: Pool,
    settings: Settings,
    device: torch.device,
    dtype: torch.dtype,
    chunk_memory: int | None = None,
    free: int | None = None,
) -> MemoryPlan:
    """The plan of a step with these networks and real images; `free` as in `make_plan`."""
    return make_plan(
        networks.network,
        real,
        ipc=settings.ipc,
        partition=settings.partition,
        passes=1 if networks.expert is networks.network or not settings.ce_weight else 2,
        batch_real=settings.batch_real,
        objective=settings.objective,
        dtype=dtype,
        device=device,
        chunk_memory=chunk_memory,
        networks_bytes=networks.bytes,
        free=free,
    )


def build_networks(
    dataset: Dataset,
    settings: Settings,
    device: torch.device,
    dtype: torch.dtype,
    pool: NetworkPool | None,
    own: Builder | None = None,
) -> DrawnNetworks:
    """The networks that the settings ask for; `pool` has been checked against them. own: as in `build_step`."""
    if settings.networks == "trained":
        assert pool is not None
        return TrainedNetworks(pool, settings.ce_ahead if settings.ce_weight else 0, device, dtype)
    if own is not None:
        built = build_own_frozen(own, dataset.image_shape, dataset.num_classes, device, dtype)
        return RandomNetworks(built) if can_be_drawn(built) else BuiltNetworks(built, own)
    assert settings.network is not None
    network = build_network(
        settings.network,
        channels=dataset.image_shape[0],
        num_classes=dataset.num_classes,
        image_size=dataset.image_shape[1:],
        frozen=True,
        drawn=False,
        device=device,
        dtype=dtype,
    )
    return RandomNetworks(network)


def prepare(step: Step, device: torch.device, compile: bool) -> Iterator[str]:
    """Compile the step's network if asked to, and record the iteration as a CUDA graph where possible.

    Yields a sentence on each. Raises FastDMError for networks that cannot be compiled.
    """
    if compile:
        try:
            seconds = step.compile()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise FastDMError(f"the networks cannot be compiled here ({reason}); run without compile") from error
        yield (
            f"compiled the network's layers in {seconds:.1f} s"
            if seconds
            else "nothing to compile: the network's layers are single ops already"
        )
    if device.type == "cuda" and (reason := step.capture()):
        yield f"running without a CUDA graph: {reason}"


@contextmanager
def op_by_op(step: Step, say: Callable[[str], None]) -> Iterator[None]:
    """Run the step without its graph within the block, so that a profiler sees the ops.

    The graph is dropped and recorded afresh afterwards, since the device need not hold the memory of both.
    """
    recorded = step.release()
    yield
    if recorded and (reason := step.capture()):
        say(f"running without a CUDA graph from here on: {reason}")
