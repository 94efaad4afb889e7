"""The YAML for `serve deploy` and a RayService: Serve's own schema takes it, and a misspelt field is refused at every depth."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fmray.cli import app
from fmray.core.config import load_config
from fmray.core.errors import ConfigError, GateRefused
from fmray.serve import application, manifest
from fmray.serve.deployment import DeployConfig
from fmray.serve.foreground import admitted
from fmray.serve.operation import Operation

Copy = Callable[..., Path]


@pytest.fixture(scope="module")
def text(experiment: Path) -> str:
    arguments = ["serve", str(experiment / "base"), str(experiment / "tuned"), "--print-config", "--replicas", "2", "--port", "8123"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_serve_takes_it(text: str, experiment: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(yaml.safe_load(text))
    [one] = schema.applications
    assert (one.import_path, one.route_prefix, schema.http_options.port) == (manifest.IMPORT_PATH, "/", 8123)
    assert [(d.name, d.num_replicas) for d in one.deployments] == [("model-base", 2), ("model-tuned", 2), ("face", 2)]
    assert [m["path"] for m in one.args["models"]] == [str((experiment / n).resolve()) for n in ("base", "tuned")]
    assert manifest.read(text, where="x") == yaml.safe_load(text)


def test_its_arguments_build_the_application_under_the_gate(text: str, copy_of: Copy) -> None:
    from ray.serve import Application

    [plain] = yaml.safe_load(text)["applications"]
    assert isinstance(manifest.application(plain["args"]), Application)
    root = copy_of("base")
    with pytest.raises(GateRefused):
        manifest.application({"models": [{"name": "base", "path": str(root / "base")}]})
    waived = {"models": [{"name": "base", "path": str(root / "base"), "waiver": {"by": "Ada", "reason": "a look"}}]}
    assert isinstance(manifest.application(waived), Application)


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ("proxy_location:", "proxy_locatoin:", "no field 'proxy_locatoin', did you mean 'proxy_location'"),
        ("route_prefix:", "route_prefx:", "did you mean 'route_prefix'"),
        ("num_replicas: 2\n    ray", "num_replicaz: 2\n    ray", "no field 'num_replicaz', did you mean 'num_replicas'"),
        ("name: face", "name: fase", "no deployment 'fase', did you mean 'face'"),
        ("cache_tokens:", "cache_tokenz:", "unknown key 'cache_tokenz', did you mean 'cache_tokens'"),
        ("port: 8123", "port: many", "valid integer"),
        ("http_options:", "http_options: [", "is no YAML"),
    ],
)
def test_a_misspelt_field_is_refused(text: str, tmp_path: Path, right: str, wrong: str, words: str) -> None:
    assert right in text
    file = tmp_path / "serve.yaml"
    file.write_text(text.replace(right, wrong, 1))
    with pytest.raises(ConfigError, match=words) as refused:
        CliRunner().invoke(app, ["serve", "--check-config", str(file)], catch_exceptions=False)
    assert (refused.value.exit_code, "\n" in str(refused.value)) == (2, False)


def test_autoscaling_is_held_too(text: str) -> None:
    plain = yaml.safe_load(text)
    [one] = plain["applications"]
    deployment = one["deployments"][0]
    del deployment["num_replicas"]
    deployment["autoscaling_config"] = {"min_replicas": 2, "max_replicas": 4, "target_ongoing_requests": 8}
    manifest.read(yaml.safe_dump(plain), where="x")
    deployment["autoscaling_config"]["max_replica"] = 4
    with pytest.raises(ConfigError, match="did you mean 'max_replicas'"):
        manifest.read(yaml.safe_dump(plain), where="x")


def test_a_good_file_is_said_to_be_one(text: str, tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    done = CliRunner().invoke(app, ["serve", "--check-config", str(file)], catch_exceptions=False)
    assert "application fmray at /: no fault found" in done.stdout


def test_autoscaling_takes_the_place_of_a_fixed_number(experiment: Path) -> None:
    config = load_config(DeployConfig, {"autoscaling": {"min_replicas": 2, "max_replicas": 4}})
    assert (config.least_replicas, application.faces(config)) == (2, 2)
    specs = admitted([experiment / "base"], decision=None, waiver=None)
    plain = yaml.safe_load(manifest.write(specs, (), {}, config, Operation()))
    model = plain["applications"][0]["deployments"][0]
    assert model["autoscaling_config"]["max_replicas"] == 4
    assert "num_replicas" not in model
    with pytest.raises(ConfigError, match="min_replicas is 3 and max_replicas 2"):
        load_config(DeployConfig, {"autoscaling": {"min_replicas": 3, "max_replicas": 2}})


def test_a_deployment_without_a_canary_keeps_its_fingerprint() -> None:
    assert "canary" not in DeployConfig().identity()
    canary = {"rules": ["canary/error_rate <= 0"]}
    assert load_config(DeployConfig, {"canary": canary}).identity()["canary"]["share"] == 0.1
