"""The files under cluster/: held to Ray's own validation, to KubeRay's fields, and to the experiment that they run."""

import json
import logging
import re
import shlex
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import fmray  # noqa: F401  (registers the stages)
from fmray.cli import split_rest
from fmray.core.experiment import Experiment, load_experiment

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
FIELDS: dict[str, Any] = json.loads((Path(__file__).parent / "kuberay_fields.json").read_text())
SECRET = re.compile(r"(AKIA[0-9A-Z]{16}|-----BEGIN|hf_[A-Za-z0-9]{20,}|(password|secret|token|api_key)\s*[:=]\s*['\"]?[A-Za-z0-9+/_-]{12,})", re.IGNORECASE)


@pytest.fixture(scope="module")
def rayjob() -> dict[str, Any]:
    return dict(yaml.safe_load((CLUSTER / "kuberay-rayjob.yaml").read_text()))


@pytest.fixture(scope="module")
def aws() -> dict[str, Any]:
    return dict(yaml.safe_load((CLUSTER / "aws.yaml").read_text()))


# --- KubeRay ---------------------------------------------------------------------------------------------------------


def faults(value: Any, kind: Any, where: str) -> Iterator[str]:
    """What in a manifest does not fit the field lists."""
    simple = {"string": str, "integer": int, "number": (int, float), "boolean": bool}
    if isinstance(kind, list):
        if value not in kind:
            yield f"{where}: {value!r} is none of {kind}"
    elif kind.endswith("[]"):
        if not isinstance(value, list):
            yield f"{where}: is no list"
            return
        for index, item in enumerate(value):
            yield from faults(item, kind[:-2], f"{where}[{index}]")
    elif kind == "map":
        if not isinstance(value, dict) or not all(isinstance(x, str) for pair in value.items() for x in pair):
            yield f"{where}: is no mapping of strings to strings"
    elif kind in simple:
        if not isinstance(value, simple[kind]) or (isinstance(value, bool) and kind != "boolean"):  # type: ignore[arg-type]
            yield f"{where}: {value!r} is no {kind}"
    elif kind not in FIELDS or not isinstance(value, dict):
        yield f"{where}: {kind} is not listed, or is no mapping here"
    else:
        for name, item in value.items():
            if name not in FIELDS[kind]:
                yield f"{where}: {kind} has no field {name}"
            else:
                yield from faults(item, FIELDS[kind][name], f"{where}.{name}")


def test_the_manifest_has_only_fields_that_kuberay_and_kubernetes_know(rayjob: dict[str, Any]) -> None:
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    assert list(faults(rayjob, "RayJob", "rayjob")) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("spec", "entryPoint"), "x", "no field entryPoint"), (("spec", "backoffLimit"), "1", "is no integer"), (("spec", "submissionMode"), "Http", "none of"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0, "strings to strings"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "resource"), {}, "no field resource"),
    ],
)  # fmt: skip
def test_the_field_lists_catch_what_a_typing_slip_would_do(rayjob: dict[str, Any], path: tuple[Any, ...], value: Any, said: str) -> None:
    broken = json.loads(json.dumps(rayjob))
    at = broken
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    assert any(said in fault for fault in faults(broken, "RayJob", "rayjob"))


def pods(rayjob: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = rayjob["spec"]["rayClusterSpec"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_pods_are_not_root_and_share_one_volume(rayjob: dict[str, Any]) -> None:
    for pod in pods(rayjob):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        claims = {v["name"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
        for container in pod["containers"]:
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
            assert {m["mountPath"] for m in container["volumeMounts"] if m["name"] in claims} == {"/mnt/shared"}
    assert rayjob["spec"]["rayClusterSpec"]["authOptions"]["mode"] == "token"


def asked(command: str) -> tuple[Experiment, str]:
    """The experiment and storage of a `... fmray run|submit FILE ...` command line."""
    words = shlex.split(command)
    rest = words[words.index("fmray") + 2 :]
    storage = rest[rest.index("--storage") + 1]
    options = [i for i, word in enumerate(rest) if word.startswith("--")]
    plain = [word for i, word in enumerate(rest) if not any(i in (o, o + 1) for o in options)]
    file = ROOT / plain[0].removeprefix("/home/ray/fmray/")
    steps, overrides = split_rest(plain[1:])
    assert steps == []
    return load_experiment(file, overrides, storage=storage), storage


def demand(experiment: Experiment) -> dict[str, float]:
    """The most GPUs that any step asks for at once, by step."""
    gpus: dict[str, float] = {}
    for name, step in experiment.steps.items():
        config = step.config
        workers = config.num_workers.max if getattr(config, "use_gpu", False) else 0
        replicas = getattr(config, "num_replicas", 1) * len(step.references) / 2 if step.spec.name == "deploy" else 1
        gpus[name] = workers + replicas * getattr(config, "num_gpus", 0)
    return gpus


def test_the_entrypoint_is_a_run_that_the_workers_can_hold(rayjob: dict[str, Any]) -> None:
    experiment, storage = asked(rayjob["spec"]["entrypoint"])
    groups = rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    there = sum(g["replicas"] * int(g["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) for g in groups)
    wanted = demand(experiment)
    assert wanted["base"] == 2
    assert all(0 <= number <= there for number in wanted.values()), wanted
    assert {"base_eval", "base_audit", "tuned", "tuned_eval", "served"} <= {name for name, number in wanted.items() if number > 0}
    mounts = [m["mountPath"] for pod in pods(rayjob) for c in pod["containers"] for m in c["volumeMounts"]]
    assert any(storage.startswith(mount + "/") for mount in mounts)


def test_overrides_of_the_clusters_change_no_fingerprint(rayjob: dict[str, Any]) -> None:
    there, _ = asked(rayjob["spec"]["entrypoint"])
    here = load_experiment(ROOT / "jobs" / "quickstart.yaml")
    for name, step in here.steps.items():
        if name != "corpus":
            assert step.config.identity() == there.steps[name].config.identity(), name


def test_the_readme_gives_the_same_command_for_aws(rayjob: dict[str, Any]) -> None:
    text = (CLUSTER / "README.md").read_text().replace("\\\n", " ")
    line = next(line for line in text.splitlines() if "fmray submit jobs/quickstart.yaml" in line)
    experiment, storage = asked(line.partition("RAY_AUTH_MODE=token ")[2])
    theirs, _ = asked(rayjob["spec"]["entrypoint"])
    assert {n: s.config for n, s in experiment.steps.items()} == {n: s.config for n, s in theirs.steps.items()}
    assert storage == "/mnt/shared/fmray"


# --- Ray's cluster launcher ------------------------------------------------------------------------------------------


def test_the_launcher_file_fits_rays_schema_and_validation(aws: dict[str, Any]) -> None:
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.Draft7Validator(schema).validate(aws)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema).validate({**aws, "max_worker": 2})
    prepared = prepare_config(json.loads(json.dumps(aws)))
    validate_config(prepared)
    assert prepared["available_node_types"]["gpu"]["resources"] == {"CPU": 8, "GPU": 1}
    with pytest.raises(Exception, match="head_node_type"):
        validate_config(prepare_config({**json.loads(json.dumps(aws)), "head_node_type": "absent"}))


def test_the_launcher_file_guards_the_cluster_and_says_its_resources(aws: dict[str, Any]) -> None:
    assert "--env RAY_AUTH_MODE=token" in aws["docker"]["run_options"]
    assert "/home/ray/.ray/auth_token" in aws["file_mounts"]
    head, workers = aws["head_start_ray_commands"][-1], aws["worker_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in head
    assert "$RAY_HEAD_IP:6379" in workers
    assert all(kind["resources"] for kind in aws["available_node_types"].values())
    gpus = sum(kind.get("min_workers", 0) * kind["resources"].get("GPU", 0) for kind in aws["available_node_types"].values())
    experiment, _ = asked(yaml.safe_load((CLUSTER / "kuberay-rayjob.yaml").read_text())["spec"]["entrypoint"])
    assert max(demand(experiment).values()) <= gpus


# --- image, secrets, upload ------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    text = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def test_the_image_never_runs_as_root_and_its_base_is_pinned_to_the_installed_ray() -> None:
    import ray

    said = instructions()
    users = [value for name, value in said if name == "USER"]
    assert users
    assert not {"root", "0"} & set(users)
    first_run = next(i for i, (name, _) in enumerate(said) if name in ("RUN", "COPY", "ADD"))
    assert any(name == "USER" for name, _ in said[:first_run])
    base = next(value for name, value in said if name == "ARG").partition("=")[2]
    assert re.fullmatch(rf"rayproject/ray:{re.escape(ray.__version__)}-py311-(gpu|cu\d+)", base)
    rayjob = yaml.safe_load((CLUSTER / "kuberay-rayjob.yaml").read_text())
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == ray.__version__
    assert not [value for name, value in said if "curl" in value or "wget" in value]


def test_what_the_image_copies_is_there_and_passes_its_ignore_file() -> None:
    kept = {line[1:] for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    for name, value in instructions():
        if name == "COPY":
            for source in [word for word in value.split() if not word.startswith("--")][:-1]:
                assert source in kept
                assert (ROOT / source).exists(), source


def test_no_file_holds_a_secret_and_every_placeholder_is_explained() -> None:
    readme = (CLUSTER / "README.md").read_text()
    for path in CLUSTER.iterdir():
        text = path.read_text()
        assert not SECRET.search(text), path
        for placeholder in ("REGISTRY/fmray:0.1.0", "NAMESPACE", "SHARED-CLAIM", "AMI-WITH-DOCKER-AND-NVIDIA-RUNTIME", "EFS-ID"):
            assert placeholder not in text or f"`{placeholder}`" in readme
    assert not list(CLUSTER.rglob("*.py"))


def test_an_upload_leaves_runs_and_checkouts_at_home(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    tree = tmp_path / "tree"
    for name in ("fmray/core/a.py", "jobs/quickstart.yaml", "runs/quickstart/base/model.safetensors", ".git/HEAD", ".venv/bin/python", "fmray/__pycache__/a.pyc"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("x")
    shutil.copy(ROOT / ".rayignore", tree)
    archive = tmp_path / "package.zip"
    create_package(str(tree), archive, include_gitignore=False, logger=logging.getLogger("test"))
    names = {name for name in zipfile.ZipFile(archive).namelist() if not name.endswith("/")}
    assert names == {"fmray/core/a.py", "jobs/quickstart.yaml", ".rayignore"}
