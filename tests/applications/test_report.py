"""The page on runs: what it shows, that it needs nothing from outside, that nothing in it can break it."""

import base64
import dataclasses
import io
import itertools
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.main import get_command

import fastdm
from fastdm.applications.report.baselines import measure_baselines
from fastdm.applications.report.command import repeating_command
from fastdm.applications.report.figures import compared, loss_lines
from fastdm.applications.report.page import render, write_report
from fastdm.applications.report.published import published_accuracy
from fastdm.applications.report.reading import RunRecord, read_run
from fastdm.applications.report.sheets import FRAMES, PIXELS, Layout, synthetic_frames
from fastdm.applications.report.svg import number_text
from fastdm.cli import app
from fastdm.data.pool import Dataset, Pool
from fastdm.errors import FastDMError
from fastdm.evaluation.outcome import Evaluation
from fastdm.runs.about import About
from tests.oracles import random_dataset

CPU = torch.device("cpu")
EVIL = '<script>alert("x")</script>'


class Page(HTMLParser):
    """Elements, ids and texts of a page; void elements are those of HTML, every other one must be closed in order."""

    VOID = ("meta", "link", "input", "br", "img", "wbr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "script"):
            self.text += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def dataset_of(classes: int, each: int = 6, names: tuple[str, ...] | None = None) -> Dataset:
    data = random_dataset([each] * classes, shape=(3, 8, 8))
    test = Pool(data.train.images[::2].clone(), torch.arange(classes + 1) * (each // 2))
    return dataclasses.replace(data, test=test, class_names=names or data.class_names)


def make_run(folder: Path, data: Dataset, **options: Any) -> Path:
    settings = {"ipc": 2, "iterations": 6, "batch_real": 4, "network": "ConvNetD1", "picture_every": 2, **options}
    fastdm.condense(data, device="cpu", save_path=folder, **settings)
    return folder


def evaluate(folder: Path, accuracies: list[float]) -> None:
    """As if the set had been evaluated."""
    protocol = {
        "networks": ["ConvNetD1"], "strategy": "flip", "num_eval": len(accuracies), "epochs": 1, "lr_net": 0.01,
        "batch_train": 8, "seed": 0, "precision": None,
    }  # fmt: skip
    crc32 = fastdm.SyntheticSet.load(folder / "synthetic.safetensors").crc32()
    content = {"set_crc32": crc32, "protocol": protocol, "accuracies": {"ConvNetD1": accuracies}}
    (folder / "evaluation.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def data() -> Dataset:
    return dataset_of(3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Dataset) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "first", data)
    evaluate(folder, [0.5, 0.75])
    return folder


def frames_on(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="frames">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    content: dict[str, Any] = json.loads(found[1])
    return content


def test_the_page_shows_the_run(run: Path, data: Dataset) -> None:
    html = render([read_run(run)], dataset=data)
    page = Page(html)
    for text in ("first", "random", "class 0", "62.5", "± 12.5", "ConvNetD1", "measured peak"):
        assert text in page.text + " ".join(str(a.get("aria-label")) for a in page.attributes("svg")), text
    # Initial images, three pictures of which the last is the set itself.
    frames = frames_on(html)
    assert frames["iterations"] == [0, 2, 4, 6]
    assert (frames["runs"][0]["at"], len(frames["runs"][0]["sheets"])) == ([0, 2, 4, 6], 3)
    (slider,) = (attributes for attributes in page.attributes("input") if attributes["type"] == "range")
    assert (slider["min"], slider["max"], slider["value"]) == ("0", "3", "3")


def test_the_page_needs_nothing_from_outside(run: Path, data: Dataset) -> None:
    html = render([read_run(run)], dataset=data)
    page = Page(html)
    links = [value for _, attributes in page.elements for name, value in attributes.items() if name in ("src", "href")]
    assert all(link is not None and link.startswith(("#", "data:")) for link in links)
    assert all(url.startswith("data:image/webp;base64,") for url in re.findall(r"url\(([^)$]*)\)", html) if url)
    assert not re.search(r"https?://|@import|//cdn", html)
    (policy,) = (a["content"] for a in page.attributes("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy


def test_every_figure_and_picture_has_a_text_and_ids_are_unique(run: Path, data: Dataset) -> None:
    page = Page(render([read_run(run), read_run(run, "again")], dataset=data))
    for tag, attributes in page.elements:
        if attributes.get("role") == "img":
            assert attributes["aria-label"], tag
        if tag == "svg":
            assert attributes.get("role") == "img" or attributes["aria-hidden"] == "true"
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [a[name] for _, a in page.elements for name in ("aria-labelledby", "for") if name in a]
    assert set(named) <= set(ids)
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(headings))


def test_names_and_settings_are_escaped(tmp_path: Path) -> None:
    data = dataclasses.replace(dataset_of(2, names=(EVIL, "</style>&amp;")), name=EVIL)
    folder = make_run(tmp_path / "run", data)
    settings = json.loads((folder / "settings.json").read_text())
    (folder / "settings.json").write_text(json.dumps({**settings, EVIL: f"</script>{EVIL}"}))
    about = About.read(folder)
    assert about is not None
    dataclasses.replace(about, notes=[EVIL], machine={EVIL: EVIL}).write(folder)
    html = render([read_run(folder, EVIL)], dataset=data)
    page = Page(html)
    assert EVIL not in html
    assert page.text.count(EVIL) > 5
    assert "</style>&amp;" in page.text
    assert [a.get("type") for a in page.attributes("script")] == ["application/json", None]


def test_the_sheet_holds_the_images(run: Path, data: Dataset) -> None:
    """Small pictures are lossless: every tile is the image of the set, or of the picture of that iteration."""
    record = read_run(run)
    frames = synthetic_frames(record, data, 10_000_000)
    assert frames is not None
    assert frames.initial
    assert record.synthetic is not None
    start = fastdm.random_selection(data, ipc=2, seed=0)
    grid = torch.from_numpy(_pixels(record.pictures[0][1].read_bytes()).copy()).movedim(2, 0)
    for number, expected in ((0, start.pixels()), (3, record.synthetic.pixels())):
        for c in range(3):
            for j in range(2):
                assert torch.equal(_tile(frames.sheets[number][1], frames.layout, 2 * c + j), expected[2 * c + j])
    cell = slice(2 + 10, 2 + 10 + 8)  # the second image of a row, behind gaps of 2
    assert torch.equal(_tile(frames.sheets[1][1], frames.layout, 1), grid[:, 2:10, cell])


def _pixels(content: bytes) -> Any:
    import numpy as np

    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def _tile(url: str, layout: Layout, number: int) -> torch.Tensor:
    sheet = torch.from_numpy(_pixels(base64.b64decode(url.partition(",")[2])).copy()).movedim(2, 0)
    row, column = divmod(number, layout.across)
    return sheet[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]


def test_a_thousand_classes_stay_below_20_mb(tmp_path: Path) -> None:
    """Noise, which compresses worst, of 1,000 classes of 64x64, over more pictures than are shown."""
    images = torch.randn(1000, 3, 64, 64)
    synthetic = fastdm.SyntheticSet(images, tuple(map(str, range(1000))), (0.5,) * 3, (0.25,) * 3, "noise")
    synthetic.save_grid(tmp_path / "noise.png")
    about = About({"name": "noise", "class_names": synthetic.class_names, "image_shape": (3, 64, 64)})
    record = RunRecord(
        name="noise", folder=Path("noise"), settings={"ipc": 1, "seed": 0}, about=about, synthetic=synthetic,
        losses=[(number, 1.0) for number in range(20_000)], seconds=1.0,
        pictures=[(number, tmp_path / "noise.png") for number in range(0, 20_000, 500)], protocol={},
        evaluation=Evaluation({}), during=[], baselines={}, profile={},
    )  # fmt: skip
    html = render([record])
    assert len(html.encode()) < 20_000_000
    assert html.count('class="tile run-0"') == 1000
    assert 2 < len(frames_on(html)["iterations"]) <= FRAMES
    # Ten images of each class would make a sheet too large: fewer are shown, and smaller.
    layout = Layout.fit(1000, 10, 64, 64)
    assert layout.classes * layout.images * layout.height * layout.width <= PIXELS


def test_a_budget_takes_quality_first_and_then_pictures(run: Path, data: Dataset) -> None:
    record = read_run(run)
    sizes = []
    for budget in (10_000_000, 4000, 300):
        frames = synthetic_frames(record, data, budget)
        assert frames is not None
        assert frames.sheets[-1][0] == 6
        sizes.append((len(frames.sheets), sum(len(url) for _, url in frames.sheets)))
    assert sizes[0][0] == 4
    assert sizes[2][0] < 4
    assert sizes[0][1] >= sizes[1][1] >= sizes[2][1]


def test_runs_side_by_side_mark_what_differs(run: Path, data: Dataset, tmp_path: Path) -> None:
    other = make_run(tmp_path / "second", data, lr_img=0.5, seed=3)
    written = write_report([run, other], tmp_path / "page.html", dataset=data, png=tmp_path / "png")
    html = written[0].read_text()
    page = Page(html)
    differing = re.findall(r'<tr class="differ"><th scope="row">(\w+)', html)
    assert differing == ["lr_img", "seed"]
    assert page.text.count("This command repeats the run:") == 2
    assert sorted(path.name for path in written[1:]) == ["images_1.png", "images_2.png", "loss.png"]
    for path in written[1:]:
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.size[0] > 100


def test_the_command_repeats_the_run(run: Path, data: Dataset, tmp_path: Path) -> None:
    """It is parsed by condense itself, and makes the same set."""
    import numpy as np

    record = read_run(run)
    arguments = shlex.split(repeating_command(record))[1:]
    images = data.train.images.movedim(1, -1).numpy()
    np.savez(tmp_path / "random.npz", x_train=images, y_train=data.train.labels.numpy())
    arguments[arguments.index("--dataset") + 1] = str(tmp_path / "random.npz")
    arguments[arguments.index("--num_eval") + 1] = "0"
    with pytest.raises(SystemExit) as ended:
        app([*arguments, "--save_path", str(tmp_path / "result"), "--device", "cpu"])
    assert ended.value.code in (0, None)
    again = read_run(tmp_path / "result" / "DM_random_ConvNetD1_2ipc_exp0")
    assert again.settings == record.settings
    assert len(list((tmp_path / "result").glob("report_DM_random_ConvNetD1_2ipc.html"))) == 1


def condense_flags() -> list[Any]:
    return list(get_command(app).commands["condense"].params)  # type: ignore[attr-defined]


def test_the_command_names_what_is_not_the_default(run: Path) -> None:
    record = read_run(run)
    settings = {**record.settings, "networks": "trained", "clamp": False, "partition": 2}
    protocol = {**record.protocol, "name": "idc", "cutmix": True, "networks": ["ConvNetW32", "ConvNetW64"]}
    words = repeating_command(dataclasses.replace(record, settings=settings, protocol=protocol))
    for part in ("--pool path/to/pool", "--no_clamp", "--partition 2", "--protocol idc"):
        assert part in words
    known = {name.lower() for each in condense_flags() for name in (*each.opts, *each.secondary_opts)}
    assert {word.lower() for word in words.split() if word.startswith("--")} <= known
    pool = ["ConvNetW32", "ConvNetW64", "ConvNetW128", "ConvNetW256"]
    words = repeating_command(dataclasses.replace(record, protocol={**protocol, "networks": pool}))
    assert words.endswith("--eval_mode W")


def test_the_loss_curve_is_the_mean_of_its_bins(run: Path) -> None:
    losses = [(number, float(number % 2)) for number in range(1000)]
    record = dataclasses.replace(read_run(run), losses=losses)
    (line,) = loss_lines([record])
    assert len(line.x) == 200
    assert line.x[:2] == [2.0, 7.0]
    assert line.mean[:2] == pytest.approx([0.4, 0.6])
    # Nine bins of five: 22 or 23 ones of 45.
    assert line.high[100] - line.mean[100] == pytest.approx(0.5, abs=0.001)


def test_baselines_are_measured_once_and_shown(run: Path, data: Dataset) -> None:
    measure_baselines(read_run(run), data, CPU)
    record = read_run(run)
    assert {name: len(e.accuracies["ConvNetD1"]) for name, e in record.baselines.items()} == {
        "random real images": 2,
        "whole set": 2,
    }
    before = (run / "baselines.json").stat().st_mtime_ns
    measure_baselines(record, data, CPU)
    assert (run / "baselines.json").stat().st_mtime_ns == before
    text = Page(render([record], dataset=data)).text
    assert "not measured" not in text
    assert "1 epoch (1 on the whole set)" in text
    # Other epochs are asked for: the whole set is measured again, and only that.
    measure_baselines(record, data, CPU, epochs=3)
    again = read_run(run)
    assert again.whole_set_epochs == 3
    assert again.baselines["random real images"] == record.baselines["random real images"]
    assert "(3 on the whole set)" in Page(render([again], dataset=data)).text
    (run / "baselines.json").unlink()


def test_random_images_are_whole_ones(run: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    record, sets = read_run(run), list[Any]()
    monkeypatch.setattr(
        "fastdm.applications.report.baselines.measure",
        lambda images, *_, **__: sets.append(images) or record.evaluation,
    )
    measure_baselines(dataclasses.replace(record, settings={**record.settings, "partition": 2}), data, CPU)
    (run / "baselines.json").unlink()
    assert torch.equal(sets[0].expand().images, fastdm.random_selection(data, ipc=2, seed=0).images)


def test_the_time_of_the_evaluation_is_shown(run: Path) -> None:
    record = read_run(run)
    assert record.evaluation_seconds is None
    assert "The evaluation at the end:" not in render([record])
    assert "The evaluation at the end: 12.3 s." in render([dataclasses.replace(record, evaluation_seconds=12.34)])


def test_a_time_that_is_no_number_is_damage(run: Path) -> None:
    path = run / "evaluation.json"
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), "seconds": "ten"}))
    with pytest.raises(FastDMError, match=r"evaluation.json is damaged \(seconds is 'ten'; it must be a number\)"):
        read_run(run)
    path.write_text(before)


def test_the_time_split_names_load_augmentation_network_and_update(run: Path) -> None:
    split = {"convolution": 0.25, "augmentation": 0.125, "update of the pixels": 0.002}
    record = dataclasses.replace(read_run(run), profile={"split": split, "waiting_seconds": 0.5})
    text = Page(render([record])).text
    for bar in ("convolution: 250 ms", "augmentation: 125 ms", "update of the pixels: 2 ms", "real images: 500 ms"):
        assert bar in text


def test_accuracies_of_another_set_are_not_those_of_the_run(data: Dataset, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", data)
    evaluate(run, [0.5, 0.75])
    assert read_run(run).evaluation.accuracies == {"ConvNetD1": [0.5, 0.75]}
    fastdm.condense(data, ipc=2, iterations=7, batch_real=4, network="ConvNetD1", save_path=run, resume=True)
    assert read_run(run).evaluation.accuracies == {}


def test_the_set_of_fewer_iterations_is_said_to_be_one(data: Dataset, tmp_path: Path) -> None:
    make_run(tmp_path, data, iterations=2)
    assert read_run(tmp_path).warnings == []
    with pytest.raises(ZeroDivisionError):
        make_run(tmp_path, data, iterations=9, resume=True, callback=lambda iteration, *_: 1 / (4 - iteration))
    expected = "the run has not ended: 5 of 9 iterations are logged, and the set is that of 2"
    assert read_run(tmp_path).warnings == [expected]


def test_accuracies_on_the_way_are_a_curve(run: Path, data: Dataset) -> None:
    lines = [{"iteration": i, "accuracies": {"ConvNetD1": [0.1 * i, 0.2]}} for i in (2, 4)]
    (run / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    html = render([read_run(run)], dataset=data)
    (run / "evaluations.jsonl").unlink()
    assert "Accuracy over the iterations. first: from 20 to 62.5" in html


def test_published_figures() -> None:
    assert published_accuracy("CIFAR10", 10) == (48.9, 0.6)
    assert published_accuracy("CIFAR10", 1250) == (80.8, None)
    assert published_accuracy("FashionMNIST", 10) is None


def test_published_figures_stand_next_to_their_protocol_only(run: Path) -> None:
    record = read_run(run)
    about = dataclasses.replace(record.about, dataset={**record.about.dataset, "name": "CIFAR10"})
    settings = {**record.settings, "network": "ConvNet", "ipc": 10}
    evaluation = Evaluation({"ConvNet": [0.7]})
    shape = {**about.dataset, "image_shape": [3, 32, 32]}
    dm = dataclasses.replace(
        record, about=dataclasses.replace(about, dataset=shape), settings=settings, evaluation=evaluation, baselines={}
    )
    idc = dataclasses.replace(dm, protocol={**record.protocol, "name": "idc"})
    ((_, found),) = compared(dm)
    assert found["published DM"] == (48.9, 0.6)
    ((_, found),) = compared(idc)
    assert [*found] == ["condensed"]


def test_the_page_names_the_protocol_the_canvases_and_what_the_loss_is(run: Path, data: Dataset) -> None:
    record = read_run(run)
    assert "the squared distance between class means of features; the first and last 25" in Page(render([record])).text
    settings = {**record.settings, "partition": 2, "ce_weight": 2.5, "objective": "cov"}
    other = dataclasses.replace(record, settings=settings, protocol={**record.protocol, "name": "idc"})
    text = " ".join(Page(render([record, other], dataset=data)).text.split())
    for part in (
        "canvases of 2 × 2",  # noqa: RUF001
        "under the protocol idc",
        "Accuracies under different protocols are not comparable",
        "class means of features; or the mean over classes of",
        "and between class covariances of features, and 2.5 times the cross-entropy",
    ):
        assert part in text, part


def test_digits_need_no_folder(tmp_path: Path) -> None:
    fastdm.condense(
        "digits", 1, iterations=1, batch_real=4, network="ConvNetD1", device="cpu", save_path=tmp_path / "run"
    )
    assert "Real examples are not shown" not in render([read_run(tmp_path / "run")], data_path=tmp_path / "nowhere")


def test_without_its_data_set_the_page_says_why(run: Path, tmp_path: Path) -> None:
    text = Page(render([read_run(run)], data_path=tmp_path / "nowhere")).text
    assert f"Real examples are not shown: there is no folder {tmp_path / 'nowhere'} to look for random in." in text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1234.5, "1,234"), (12.34, "12.3"), (0.5, "0.5"), (100, "100"), (1e-7, "1e-07")]
)
def test_numbers_as_people_read_them(value: float, text: str) -> None:
    assert number_text(value) == text


def test_what_is_no_run_is_one_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FastDMError, match="neither a run folder"):
        write_report([tmp_path], tmp_path / "page.html")
    for number in range(7):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "settings.json").write_text('{"ipc": 1, "seed": 0, "iterations": 2}')
    with pytest.raises(FastDMError, match="at most 6"):
        write_report([tmp_path], tmp_path / "page.html")
    with pytest.raises(FastDMError, match=r"neither about\.json nor"):
        read_run(tmp_path / "0")
    broken = tmp_path / "0" / "about.json"
    broken.write_text("{")
    with pytest.raises(FastDMError, match="is damaged"):
        read_run(tmp_path / "0")
