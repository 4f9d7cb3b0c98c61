"""`DiffAugment` against a literal transcription of the public function, down to the random generator's state."""

import os
import subprocess
import sys

import pytest
import torch

import fastdm
from bench.baselines.public_augment import diff_augment
from fastdm.kernels import extension
from tests.kernels.augmentation.tables import FAMILIES, apart

ALL = "color_crop_cutout_flip_scale_rotate"


@pytest.mark.parametrize("mode", ["S", "M"])
@pytest.mark.parametrize("shape", [(5, 3, 32, 32), (100, 3, 32, 32), (17, 1, 28, 28), (1, 3, 16, 16)], ids=str)
@pytest.mark.parametrize("strategy", [ALL, "flip_rotate_crop_color"])
def test_equals_the_public_function(mode: str, shape: tuple[int, ...], strategy: str) -> None:
    """Up to the rounding of both: that of sampled coordinates grows with the size of the image."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    param, their_param = fastdm.ParamDiffAug(), fastdm.ParamDiffAug()
    param.aug_mode = their_param.aug_mode = mode
    one_of = [[family] for family in strategy.split("_")] if mode == "S" else [strategy.split("_")]
    bound = max(apart(families, (shape[2], shape[3]), float(x.abs().max())) for families in one_of)
    for seed in [-1, *range(24)]:
        torch.manual_seed(100 + seed)
        ours = fastdm.DiffAugment(x, strategy, seed, param)
        our_generator = torch.random.get_rng_state()
        torch.manual_seed(100 + seed)
        public = diff_augment(x, strategy, seed, their_param)
        assert torch.equal(our_generator, torch.random.get_rng_state())
        assert param.latestseed == their_param.latestseed
        assert param.Siamese == param.batchmode == (seed != -1)
        torch.testing.assert_close(ours, public, rtol=0, atol=bound)


@pytest.mark.parametrize("family", ["color", "crop", "cutout", "flip"])
def test_single_families(family: str) -> None:
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2)).clamp(-2, 2)
    for seed in range(8):
        ours = fastdm.DiffAugment(x, family, seed)
        public = diff_augment(x, family, seed, fastdm.ParamDiffAug())
        assert (ours - public).abs().max() <= apart([family], (32, 32), 2)


def test_siamese_gives_real_and_synthetic_images_the_same_transformation() -> None:
    x = torch.randn(3, 3, 16, 16)
    together = fastdm.DiffAugment(torch.cat([x, x]), ALL, 11, fastdm.ParamDiffAug())
    assert torch.equal(together[:3], together[3:])
    assert torch.equal(fastdm.DiffAugment(x[:1], ALL, 11), together[:1])


def test_gradient() -> None:
    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    weight = torch.randn(2, 3, 16, 16)
    param = fastdm.ParamDiffAug()
    param.aug_mode = "M"
    (fastdm.DiffAugment(x, ALL, 5, param) * weight).sum().backward()
    (diff_augment(y, ALL, 5, param) * weight).sum().backward()
    # A pixel collects weights that add up to at most 1.5² (enlargement on both axes).
    bound = 2.25 * apart(FAMILIES, (16, 16), float(weight.abs().max()))
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=bound)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", [-1, 3])
def test_kernels_and_pytorch_give_the_same(family: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch goes one way or the other by its size, which must not show."""
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    results = []
    for takes in (True, False):
        monkeypatch.setattr("fastdm.compat.diff_augment._is_for_kernels", lambda *_, takes=takes: takes)
        torch.manual_seed(4)
        results.append(fastdm.DiffAugment(x, family, seed))
    bound = apart([family], (32, 32), float(x.abs().max()))
    torch.testing.assert_close(*results, rtol=0, atol=bound)


@pytest.mark.parametrize("seed", [-1, 7])
@pytest.mark.parametrize("mode", ["S", "M"])
@pytest.mark.parametrize(
    ("channels", "strategy", "strengths"),
    [
        pytest.param(2, ALL, {}, id="2 channels"),
        pytest.param(4, ALL, {}, id="4 channels"),
        pytest.param(13, ALL, {}, id="13 channels"),
        pytest.param(3, ALL, {"ratio_scale": 0.8}, id="ratio_scale 0.8"),
        pytest.param(3, ALL, {"ratio_scale": 1.6}, id="ratio_scale 1.6"),
        pytest.param(3, ALL, {"ratio_scale": 2.0}, id="ratio_scale 2"),
        pytest.param(3, "scale", {"ratio_scale": 2}, id="only scale, ratio_scale 2"),
        pytest.param(3, "cutout", {"ratio_cutout": 0}, id="ratio_cutout 0"),
        pytest.param(3, ALL, {"ratio_cutout": 0.01}, id="a hole of side 0"),
        pytest.param(3, ALL, {"ratio_cutout": 1.5}, id="ratio_cutout 1.5"),
        pytest.param(3, ALL, {"ratio_crop_pad": 1.5}, id="ratio_crop_pad 1.5"),
        pytest.param(3, ALL, {"prob_flip": 0.1, "brightness": 0.2, "saturation": 1.1, "contrast": 0.9}, id="strengths"),
        pytest.param(3, "flip_color_flip_crop_crop", {}, id="families named twice"),
        pytest.param(3, "color_cutout", {"ratio_rotate": 90.0}, id="two families"),
    ],
)
def test_every_call_that_the_public_function_takes(
    channels: int, strategy: str, strengths: dict[str, float], mode: str, seed: int
) -> None:
    x = torch.randn(3, channels, 12, 16, generator=torch.Generator().manual_seed(5))
    param = fastdm.ParamDiffAug()
    param.aug_mode = mode
    for name, value in strengths.items():
        setattr(param, name, value)
    # Two passes of color, of a gain of at most 3 each, at most: a family named twice.
    bound = 9 * apart(FAMILIES, (12, 16), float(x.abs().max()))
    for number in range(12):
        shifted = seed if seed == -1 else seed + number
        torch.manual_seed(number)
        ours = fastdm.DiffAugment(x, strategy, shifted, param)
        state = torch.random.get_rng_state()
        torch.manual_seed(number)
        torch.testing.assert_close(ours, diff_augment(x, strategy, shifted, param), rtol=0, atol=bound)
        assert torch.equal(state, torch.random.get_rng_state())


def test_a_family_named_twice_is_twice_as_likely() -> None:
    """Draws of mode S choose among the names as written: 3 for each seed below, by PyTorch's generator."""
    x = torch.arange(64.0).view(1, 1, 8, 8)
    param = fastdm.ParamDiffAug()
    param.prob_flip, param.ratio_cutout = 1.0, 1.0
    for seed in range(30):
        choice = int(torch.randint(3, (1,), generator=torch.Generator().manual_seed(seed)))
        out = fastdm.DiffAugment(x, "flip_flip_cutout", seed, param)
        assert torch.equal(out, x.flip(3)) == (choice < 2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_integer_images_are_moved_and_keep_their_dtype(dtype: torch.dtype) -> None:
    x = torch.randint(0, 256, (4, 3, 9, 8), generator=torch.Generator().manual_seed(6)).to(dtype)
    param = fastdm.ParamDiffAug()
    param.aug_mode = "M"
    for seed in (-1, 2, 3):
        torch.manual_seed(8)
        ours = fastdm.DiffAugment(x, "flip_crop_cutout", seed, param)
        torch.manual_seed(8)
        assert torch.equal(ours, diff_augment(x, "flip_crop_cutout", seed, param))
        assert ours.dtype == dtype
    with pytest.raises(fastdm.FastDMError, match="color needs floating-point images"):
        fastdm.DiffAugment(x, "color", 1)


def test_float64_images_flip_by_draws_in_float32() -> None:
    x = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    for seed in range(60):
        assert torch.equal(fastdm.DiffAugment(x, "flip", seed), diff_augment(x, "flip", seed, fastdm.ParamDiffAug()))
        torch.manual_seed(seed)
        each = fastdm.DiffAugment(x, "flip")
        torch.manual_seed(seed)
        assert torch.equal(each, diff_augment(x, "flip", -1, fastdm.ParamDiffAug()))


def test_float64_images_keep_their_precision() -> None:
    x = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    for seed in range(4):
        public = diff_augment(x, "color", seed, fastdm.ParamDiffAug())
        torch.testing.assert_close(fastdm.DiffAugment(x, "color", seed), public, rtol=0, atol=1e-14)


def test_a_call_does_not_depend_on_the_default_dtype() -> None:
    x = torch.randn(3, 3, 8, 8)
    param = fastdm.ParamDiffAug()
    param.aug_mode = "M"
    expected = fastdm.DiffAugment(x, ALL, 4, param)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(fastdm.DiffAugment(x, ALL, 4, param), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("mode", ["S", "M"])
@pytest.mark.parametrize("n", [4, 100])
def test_derivatives_of_every_kind(mode: str, n: int) -> None:
    """For fixed draws the result is affine in the images, A x + b: what its derivatives are follows from the public
    function's values and gradients. The gradient of vᵀ Aᵀ (A x + b) is Aᵀ A v."""
    x, v = torch.randn(2, n, 3, 32, 32, generator=torch.Generator().manual_seed(9))
    param = fastdm.ParamDiffAug()
    param.aug_mode = mode

    def transposed(v: torch.Tensor, seed: int) -> torch.Tensor:
        leaf = torch.zeros_like(x).requires_grad_()
        (grad,) = torch.autograd.grad(diff_augment(leaf, ALL, seed, param), leaf, v)
        return grad

    for seed in range(5):
        constant = diff_augment(torch.zeros_like(x), ALL, seed, param)
        times_v = diff_augment(v, ALL, seed, param) - constant

        def call(x: torch.Tensor, seed: int = seed) -> torch.Tensor:
            return fastdm.DiffAugment(x, ALL, seed, param)

        bound = 2 * 2.25 * apart(FAMILIES, (32, 32), float(v.abs().max()))
        _, tangent = torch.func.jvp(call, (x,), (v,))
        torch.testing.assert_close(tangent, times_v, rtol=0, atol=bound)
        gradient = torch.func.grad(lambda x, call=call: (call(x) * v).sum())(x)
        torch.testing.assert_close(gradient, transposed(v, seed), rtol=0, atol=bound)
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(call(leaf).square().sum() / 2, leaf, create_graph=True)
        (second,) = torch.autograd.grad(grad, leaf, v)
        # Both factors are off by the bound, and each is multiplied by a gain of at most 3 · 2.25.
        torch.testing.assert_close(second, transposed(times_v, seed), rtol=0, atol=2 * 6.75 * bound)


def test_no_more_threads_than_pytorch_uses() -> None:
    """1,024 images are work for many threads; a process that may use one has none besides it."""
    code = """
import os, torch, fastdm

def times():
    tasks = sorted(os.listdir("/proc/self/task"))
    return [open(f"/proc/self/task/{task}/schedstat").read().split()[0] for task in tasks]

torch.set_num_threads(1)
images, param = torch.randn(1024, 3, 32, 32), fastdm.ParamDiffAug()
param.aug_mode = "M"
fastdm.DiffAugment(images, "color_crop_flip", 1, param)
before = times()
fastdm.DiffAugment(images, "color_crop_flip", 1, param)
print(sum(a != b for a, b in zip(before, times())))
"""
    environment = {**os.environ, "FASTDM_THREADS": "4"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "1"


@pytest.mark.parametrize("value", ["", "abc", "0", "2.5"])
def test_a_number_of_threads_that_is_none_is_refused(value: str) -> None:
    if extension.load() is None:
        pytest.skip("fastdm was installed without the extension")
    code = "from fastdm import _native; _native.threads()"
    environment = {**os.environ, "FASTDM_THREADS": value}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert f"FASTDM_THREADS is '{value}'; it must be a whole number from 1 to 1024" in run.stderr


def test_an_unknown_family_changes_nothing() -> None:
    param = fastdm.ParamDiffAug()
    with pytest.raises(fastdm.FastDMError, match="unknown augmentation 'blur'"):
        fastdm.DiffAugment(torch.zeros(1, 3, 8, 8), "blur", 3, param)
    assert param.latestseed == -1


@pytest.mark.parametrize("seed", [-1, 3])
@pytest.mark.parametrize("strategy", [*ALL.split("_"), ALL])
def test_no_images_stay_none(strategy: str, seed: int) -> None:
    param = fastdm.ParamDiffAug()
    param.aug_mode = "M"
    assert fastdm.DiffAugment(torch.empty(0, 3, 8, 6), strategy, seed, param).shape == (0, 3, 8, 6)


@pytest.mark.parametrize("ratio", [0.125, 1.0, 1.5])
def test_any_reach_of_one_shift_for_all(ratio: float) -> None:
    """Beyond the image all is 0; shifts within it are moved, not computed."""
    x = torch.randn(3, 3, 6, 9, generator=torch.Generator().manual_seed(0))
    param, their_param = fastdm.ParamDiffAug(), fastdm.ParamDiffAug()
    param.ratio_crop_pad = their_param.ratio_crop_pad = ratio
    for seed in range(40):
        ours = fastdm.DiffAugment(x, "crop", seed, param)
        assert torch.equal(ours, diff_augment(x, "crop", seed, their_param))
        assert ours.data_ptr() != x.data_ptr()


def test_no_strategy_returns_the_images() -> None:
    x = torch.randn(2, 3, 8, 8)
    for strategy in ("none", "None", "NONE", "", None):
        assert fastdm.DiffAugment(x, strategy, 3) is x
    assert fastdm.DiffAugment(x) is x


def test_what_is_not_a_tensor_is_refused() -> None:
    with pytest.raises(fastdm.FastDMError, match="the images are a list; they must be a tensor"):
        fastdm.DiffAugment([torch.zeros(1, 3, 8, 8)], "color", 1)  # type: ignore[arg-type]
    with pytest.raises(fastdm.FastDMError, match="the strategy is a list; it must be a str"):
        fastdm.DiffAugment(torch.zeros(1, 3, 8, 8), ["color"], 1)  # type: ignore[arg-type]
    with pytest.raises(fastdm.FastDMError, match="seed is None; it must be a number"):
        fastdm.DiffAugment(torch.zeros(1, 3, 8, 8), "color", None)  # type: ignore[arg-type]
