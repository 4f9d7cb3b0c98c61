"""The downstream tasks' record: what the commands leave becomes rows and tables."""

import shlex

import pytest
from typer.main import get_command

from bench import downstream
from bench.harness import cells
from fastdm.cli import app

ORDERS = [
    {"method": "DM", "order": order, "step": step, "classes": 2 * step + 2, "accuracies": [first, first + 0.1]}
    for order, step, first in ((0, 0, 0.5), (0, 1, 0.3), (1, 0, 0.7))
]
SUMMARY = {
    proxy: {"best": "B", "accuracy": 0.9, "spearman": spearman, "seconds": 12.34, "images": 100}
    for proxy, spearman in (("random", 0.5), ("whole set", 1.0))
}
NETWORKS = [
    {"proxy": proxy, "network": network, "accuracies": [accuracy]}
    for proxy, network, accuracy in (("random", "A", 0.25), ("random", "B", 0.5), ("whole set", "A", 0.8))
]


def test_a_row_holds_the_mean_of_every_order_and_their_spread() -> None:
    first, second = downstream.continual_rows(ORDERS)
    assert (first["method"], first["classes"], first["orders"]) == ("DM", 2, [55.0, 75.0])
    assert (first["mean"], first["std"]) == (65.0, 10.0)
    assert (second["classes"], second["mean"], second["std"]) == (4, 35.0, 0.0)


def test_a_row_holds_what_a_proxy_is_worth_and_every_network_on_it() -> None:
    random, whole = downstream.search_rows(SUMMARY, NETWORKS)
    assert (random["best"], random["reached"], random["spearman"], random["images"]) == ("B", 90.0, 0.5, 100)
    assert random["networks"] == {"A": 25.0, "B": 50.0}
    assert whole["networks"] == {"A": 80.0}


def test_the_tables_show_methods_by_classes_and_proxies() -> None:
    rows = downstream.continual_rows(ORDERS) + downstream.search_rows(SUMMARY, NETWORKS)
    text = cells.table(downstream.SUITE.table, rows)
    assert "| DM | 65.0 ± 10.0 | 35.0 ± 0.0 |" in text
    assert "| random | B | 90.0 | 0.50 | 12 | 100 |" in text


@pytest.mark.parametrize("line", [*downstream.COMMANDS.values(), *downstream.SMOKE.values()])
def test_the_commands_have_their_flags(line: str) -> None:
    name, *words = shlex.split(line)[1:]
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    flags = {flag for option in command.params for flag in option.opts}
    assert {word for word in words if word.startswith("--")} <= flags
