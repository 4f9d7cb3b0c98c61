"""`DiffAugment` against a literal transcription of the public function, down to the random generator's state."""

import pytest
import torch

import fastdm
from bench.baselines import public_loop
from tests.kernels.augmentation.tables import FAMILIES, apart

ALL = "color_crop_cutout_flip_scale_rotate"


@pytest.mark.parametrize("mode", ["S", "M"])
@pytest.mark.parametrize("shape", [(5, 3, 32, 32), (17, 1, 28, 28), (1, 3, 16, 16)], ids=str)
@pytest.mark.parametrize("strategy", [ALL, "flip_rotate_crop_color"])
def test_equals_the_public_function(mode: str, shape: tuple[int, ...], strategy: str) -> None:
    """Up to the rounding of both: that of sampled coordinates grows with the size of the image."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    param = fastdm.ParamDiffAug()
    param.aug_mode = mode
    state: dict[str, int] = {}
    one_of = [[family] for family in strategy.split("_")] if mode == "S" else [strategy.split("_")]
    bound = max(apart(families, (shape[2], shape[3]), float(x.abs().max())) for families in one_of)
    for seed in [-1, *range(24)]:
        torch.manual_seed(100 + seed)
        ours = fastdm.DiffAugment(x, strategy, seed, param)
        our_generator = torch.random.get_rng_state()
        torch.manual_seed(100 + seed)
        public = public_loop.diff_augment(x, strategy, seed, mode, state)
        assert torch.equal(our_generator, torch.random.get_rng_state())
        assert param.latestseed == state["latestseed"]
        assert param.Siamese == param.batchmode == (seed != -1)
        torch.testing.assert_close(ours, public, rtol=0, atol=bound)


@pytest.mark.parametrize("family", ["color", "crop", "cutout", "flip"])
def test_single_families(family: str) -> None:
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2)).clamp(-2, 2)
    for seed in range(8):
        ours = fastdm.DiffAugment(x, family, seed)
        assert (ours - public_loop.diff_augment(x, family, seed)).abs().max() <= apart([family], (32, 32), 2)


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
    (public_loop.diff_augment(y, ALL, 5, "M") * weight).sum().backward()
    # A pixel collects weights that add up to at most 1.5² (enlargement on both axes).
    bound = 2.25 * apart(FAMILIES, (16, 16), float(weight.abs().max()))
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=bound)


def test_an_unknown_family_changes_nothing() -> None:
    param = fastdm.ParamDiffAug()
    with pytest.raises(fastdm.FastDMError, match="unknown augmentation 'blur'"):
        fastdm.DiffAugment(torch.zeros(1, 3, 8, 8), "blur", 3, param)
    assert param.latestseed == -1


def test_no_strategy_returns_the_images() -> None:
    x = torch.randn(2, 3, 8, 8)
    assert fastdm.DiffAugment(x, "none", 3) is x
    assert fastdm.DiffAugment(x) is x
