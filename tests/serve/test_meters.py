"""The Grafana dashboard asks for nothing that the server does not export, and shows everything that it does."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
BOARD = json.loads((ROOT / "cluster" / "grafana-serving.json").read_text())
MADE = set(re.findall(r'"(fmray_\w+)"', (ROOT / "fmray" / "serve" / "meters.py").read_text()))


def test_the_dashboard_shows_what_is_exported() -> None:
    asked = {name for panel in BOARD["panels"] for target in panel["targets"] for name in re.findall(r"ray_(fmray_\w+)", target["expr"])}
    assert {re.sub(r"_(total|bucket)$", "", name) for name in asked} == MADE
    assert len(MADE) == 11


def test_the_dashboard_can_be_imported() -> None:
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in BOARD["panels"]]
    assert len(set(places)) == len(places)
    variables = {variable["name"] for variable in BOARD["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(BOARD))) - {"__rate_interval", "__all"} == variables
    for panel in BOARD["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")")
            assert target["expr"].count("{") == target["expr"].count("}")
