"""Files that version 0.1.0 wrote before its package was divided into rooms still open, and a run of it still resumes.

They were made from 16 random images of 4 classes: a packed set, the checkpoint after 3 of 5 iterations, and the set
after all of them in both formats.
"""

import shutil
from pathlib import Path

import torch

import fastdm

OLD = Path(__file__).parent / "old_files"
SETTINGS = {"ipc": 1, "iterations": 5, "batch_real": 3, "network": "ConvNetD1", "precision": "fp32", "seed": 4}


def test_a_packed_set_opens() -> None:
    dataset = fastdm.open_dataset(OLD / "old.fastdm")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8, generator=generator)
    assert torch.equal(dataset.train.images, images.view(4, 4, 1, 8, 8).transpose(0, 1).reshape(16, 1, 8, 8))
    assert dataset.test is not None
    assert torch.equal(dataset.test.images, images[:4])


def test_condensed_sets_load() -> None:
    kept = fastdm.SyntheticSet.load(OLD / "synthetic.safetensors")
    assert (kept.dataset, kept.ipc, kept.settings["network"]) == ("old", 1, "ConvNetD1")
    public = fastdm.SyntheticSet.load(
        OLD / "res_DM_old_ConvNetD1_1ipc.pt", dataset=fastdm.open_dataset(OLD / "old.fastdm")
    )
    assert torch.equal(public.images, kept.images)


def test_a_run_resumes(tmp_path: Path) -> None:
    shutil.copy(OLD / "checkpoint.safetensors", tmp_path)
    resumed = fastdm.condense(OLD / "old.fastdm", save_path=tmp_path, resume=True, device="cpu", **SETTINGS)
    finished = fastdm.SyntheticSet.load(OLD / "synthetic.safetensors").images
    # Two iterations of float32 arithmetic, whose rounding may differ from processor to processor.
    assert (resumed.images - finished).abs().max() <= 2e-4 * finished.abs().max()
    assert sum(1 for _ in (tmp_path / "log.jsonl").open()) == 2
