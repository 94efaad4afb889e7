"""What was seen of a training, on the page and in the terminal: curves, ranks with the slowest named, operators, and what went wrong."""

import re
from pathlib import Path
from typing import Any

from fmray.model.watched import Operator, RankTimes, Spread, Watched
from fmray.report.figures import figure
from fmray.report.html import write_report
from fmray.report.terminal import show_artifact, summary_table
from fmray.report.watched import rank_rows, slowest
from tests.report import records
from tests.report.test_html import ELEMENTS, poisoned, words
from tests.report.test_markup import read
from tests.report.test_terminal import said


def rank(number: int, step: float, data: float, others: float | None) -> RankTimes:
    def spread(value: float) -> Spread:
        return Spread(median=value, p95=2 * value)

    return RankTimes(rank=number, host=f"node-{number}", n_steps=1000, step_s=spread(step), data_wait_s=spread(data), others_s=None if others is None else spread(others))


WATCHED = Watched(
    curves={
        "eval_loss": ((700, 3.1), (1400, 2.625)), "lr": ((1, 1e-3), (700, 5e-4), (1400, 1e-5)), "grad_norm": ((1, 2.0), (1400, 0.5)), "tokens_per_s": ((1, 14000.0), (1400, 15000.0)),
    },
    ranks=(rank(0, 0.8, 0.001, 0.3), rank(1, 0.8, 0.02, 0.1), rank(2, 0.8, 0.001, 0.3)),
    operators=(Operator(name="aten::addmm", calls=1200, self_ms=812.5, share=0.41, device="cpu"),),
    notes=("tracker wandb failed after step 12 and shows no more: OSError: No space left on device",),
)  # fmt: skip


def life(root: Path, watched: Watched = WATCHED) -> Path:
    writer = records.Writer(root)
    writer.step("corpus", "prepare", records.dataset())
    writer.step("base", "pretrain", records.base(watched=watched, figures={"cost/price_usd": 1.5, "cost/energy_kwh": 0.25, "train/eval_loss": 2.625}), {"dataset": "corpus"})
    return root


def plain(watched: Watched) -> dict[str, Any]:
    return watched.model_dump(mode="json")


def test_the_slowest_rank_is_the_one_that_the_others_wait_for() -> None:
    assert slowest(plain(WATCHED)) == "rank 1 on node-1 is the slowest: 700.0 ms a step of its own, 40 % more than the others' median"
    assert slowest(plain(Watched(ranks=WATCHED.ranks[:1]))) == ""
    assert slowest(plain(Watched())) == ""
    unknown = Watched(ranks=(rank(0, 0.8, 0.001, None), rank(1, 0.8, 0.2, None)))
    assert slowest(plain(unknown)).startswith("rank 1 on node-1 waits longest for data: 200.0 ms a step; which one computes longest")
    assert rank_rows(plain(unknown))[1] == ("1", "node-1", "1,000", "800.0 ms", "1,600.0 ms", "200.0 ms", "400.0 ms", "unknown", "unknown")


def test_the_page_has_the_curves_and_the_tables(tmp_path: Path) -> None:
    page = write_report(life(tmp_path / "x")).read_text()
    text = words(page)
    for expected in (
        "held-out loss while training", "held-out loss while training: 1,400, 2.625", "learning rate of base", "gradient norm of base", "speed of base", "speed (tokens/s)",
        "Rank 1 on node-1 is the slowest", "aten::addmm", "812.5 ms", "41.0 %", "tracker wandb failed after step 12", "price", "$1.5", "0.25 kWh",
    ):  # fmt: skip
        assert expected in text, expected
    # Two lines in the chart of the loss, one in each of the others.
    assert len(re.findall(r'<polyline [^>]*class="line s\d"', page)) == 5


def test_a_training_that_was_not_watched_has_the_page_it_had(tmp_path: Path) -> None:
    page = write_report(life(tmp_path / "x", Watched())).read_text()
    assert page.count("<polyline") == 1
    assert "Time of each rank" not in page


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    page = write_report(poisoned(life(tmp_path / "x"))).read_text()
    assert set(read(page).tags) <= ELEMENTS
    assert "alert(1)" in read(page).words
    assert "is the slowest" in page


def test_the_terminal_names_the_slowest_rank(tmp_path: Path) -> None:
    root = life(tmp_path / "x")
    shown = said(show_artifact(root / "base"))
    for expected in ("waits for others", "node-2", "rank 1 on node-1 is the slowest", "aten::addmm", "tracker wandb failed"):
        assert expected in shown, expected
    assert "held-out loss 2.625" in said(summary_table(root))


def test_figures_of_cost_have_their_units() -> None:
    assert figure("cost/price_usd", 1.5) == ("price", "$1.5")
    assert figure("cost/energy_kwh", 0.25) == ("energy", "0.25 kWh")
