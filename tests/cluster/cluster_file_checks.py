"""What must hold in the files of cluster/, Kubernetes' apart: each check returns the problems it found, in words."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import typer
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.util import prepare_config, validate_config

from bgrpo.cli.app import app
from bgrpo.config import TrainConfig, load_config
from bgrpo.distributed.session.ray_session import check_room, training_demand
from bgrpo.errors import UserError
from bgrpo.sweep.sweep_config import SweepConfig
from bgrpo.sweep.trial_configs import TrialConfigs

REPOSITORY = Path(__file__).resolve().parents[2]
CLUSTER = REPOSITORY / "cluster"
PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
IMAGE = f"bgrpo:{PROJECT['version']}"
ENTRY_POINTS = ("ray_jobs.train", "ray_jobs.sweep", "ray_jobs.pretrain")

COMPOSE_SCHEMA = json.loads(
    (files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json").read_text("utf-8")
)
STEPS = ("FROM", "ARG", "RUN", "WORKDIR", "COPY", "USER", "ENV", "HEALTHCHECK", "CMD")
PUBLISHED = re.compile(r"127\.0\.0\.1:\d+:\d+")


def read_all(path: Path) -> list[dict[str, Any]]:
    """Every document of a YAML file."""
    return [tree for tree in yaml.safe_load_all(path.read_text("utf-8")) if tree is not None]


def schema_problems(tree: Any, schema: dict[str, Any]) -> list[str]:
    """What a JSON schema refuses in a tree."""
    validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(tree)]


def required(name: str) -> SpecifierSet:
    """The range of versions of a package that pyproject.toml asks for."""
    found = (Requirement(text) for text in PROJECT["dependencies"])
    return next(item.specifier for item in found if item.name == name)


def check_image(image: str) -> list[str]:
    """An image must name its version; ours must be the version of the project."""
    name, _, tag = image.rpartition(":")
    if not name or tag == "latest":
        return [f"image {image}: no version"]
    return [f"image {image}: expected {IMAGE}"] if name.endswith("bgrpo") and tag != PROJECT["version"] else []


def check_constraints(text: str) -> list[str]:
    """Every requirement of bgrpo is pinned, to a version that pyproject.toml allows."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    texts = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["sweep"]]
    needed = {item.name.lower(): item.specifier for item in map(Requirement, texts)}
    problems = [f"{name} is not pinned" for name in needed.keys() - pins.keys()]
    problems += [f"{name} is pinned, but not required" for name in pins.keys() - needed.keys()]
    return problems + [
        f"{name}=={pins[name]} is outside {range_}"
        for name, range_ in needed.items()
        if name in pins and pins[name] not in range_
    ]


def check_launcher(tree: dict[str, Any]) -> list[str]:
    """Ray's own validator, and what it does not look at: token, loopback dashboard, versions, security groups."""
    problems = []
    try:
        validate_config(prepare_config(tree))
    except (jsonschema.ValidationError, ValueError, RuntimeError, KeyError) as error:
        return [f"Ray's validator: {str(error).splitlines()[0]}"]
    types = tree["available_node_types"]
    workers = {name: entry for name, entry in types.items() if name != tree["head_node_type"]}
    for name, entry in workers.items():
        if not 0 <= entry["min_workers"] <= entry["max_workers"] <= tree["max_workers"]:
            problems.append(f"{name}: expected 0 <= min_workers <= max_workers <= the cluster's")
    if types[tree["head_node_type"]]["resources"].get("CPU") != 0:
        problems.append("the head computes")
    problems += [
        f"{name}: no SecurityGroupIds" for name, e in types.items() if "SecurityGroupIds" not in e["node_config"]
    ]
    return problems + _check_launcher_commands(tree)


def _check_launcher_commands(tree: dict[str, Any]) -> list[str]:
    problems = []
    for kind in ("head", "worker"):
        starts = [line for line in tree[f"{kind}_start_ray_commands"] if "ray start" in line]
        if len(starts) != 1:
            problems.append(f"{kind}: {len(starts)} commands start Ray")
        for setting in ("RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH=$HOME/.ray/auth_token"):
            problems += [f"{kind}: without {setting}" for line in starts if setting not in line.split()]
    head = " ".join(tree["head_start_ray_commands"]).split()
    problems += [
        f"head: without {option}" for option in ("--dashboard-host=127.0.0.1", "--num-cpus=0") if option not in head
    ]
    if not any(target.endswith("/.ray/auth_token") for target in tree["file_mounts"]):
        problems.append("the token is not copied to the nodes")
    setup = " ".join(tree["setup_commands"])
    wanted = [
        f'bgrpo --version)" = {PROJECT["version"]}',
        "cluster/constraints.txt",
        "python3.11 -m venv",
        "/mnt/bgrpo",
    ]
    return problems + [f"setup_commands: without {text}" for text in wanted if text not in setup]


def check_compose(tree: dict[str, Any], folder: Path = CLUSTER) -> list[str]:
    """The published schema, versions, ports on 127.0.0.1, the token on every Ray node, sources that exist."""
    problems = schema_problems(tree, COMPOSE_SCHEMA)
    if problems:
        return problems
    for name, service in tree["services"].items():
        problems += check_image(service.get("image", ""))
        problems += [
            f"{name}: port {port} is open" for port in service.get("ports", []) if not PUBLISHED.fullmatch(port)
        ]
        problems += [
            f"{name}: secret {secret}?" for secret in service.get("secrets", []) if secret not in tree["secrets"]
        ]
        problems += [
            f"{name}: depends on {other}?" for other in service.get("depends_on", []) if other not in tree["services"]
        ]
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if not ((folder / source).exists() if source.startswith(".") else source in tree["volumes"]):
                problems.append(f"{name}: volume {source}?")
        if "build" in service:
            context = folder / service["build"]["context"]
            problems += [] if (context / service["build"]["dockerfile"]).is_file() else [f"{name}: no Dockerfile"]
        problems += _check_compose_service(name, service)
    return problems


def _check_compose_service(name: str, service: dict[str, Any]) -> list[str]:
    words, environment = shlex.split(service.get("command", "")), service.get("environment", {})
    problems = [] if service.get("cap_drop") == ["ALL"] else [f"{name}: keeps capabilities"]
    if words[:2] == ["ray", "start"]:
        if environment.get("RAY_AUTH_MODE") != "token":
            problems.append(f"{name}: without RAY_AUTH_MODE=token")
        if environment.get("RAY_AUTH_TOKEN_PATH") not in [f"/run/secrets/{secret}" for secret in service["secrets"]]:
            problems.append(f"{name}: RAY_AUTH_TOKEN_PATH is no secret of the service")
        if "runs:/runs" not in service.get("volumes", []):
            problems.append(f"{name}: does not see the run folder")
    if any("PASSWORD" in key and not key.endswith("__FILE") for key in environment):
        problems.append(f"{name}: a password in the file")
    return problems


def check_dockerfile(text: str, context: Path = REPOSITORY) -> list[str]:
    """Base image of our Python, sources that exist and get into the context, no root, no secret, a health check."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    steps = [(line.split()[0], line.split()[1:]) for line in lines]
    problems = [f"{word}?" for word, _ in steps if word not in STEPS]
    base = next(words[0] for word, words in steps if word == "FROM")
    problems += check_image(base)
    version = re.match(r"python:(\d+\.\d+)-", base)
    if version is None or version[1] not in SpecifierSet(PROJECT["requires-python"]):
        problems.append(f"{base}: expected Python {PROJECT['requires-python']}")
    admitted = (context / "cluster" / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    for source in [source for word, words in steps if word == "COPY" for source in words[:-1]]:
        if not (context / source).exists() or f"!{source}" not in admitted:
            problems.append(f"COPY {source}: absent, or left out by Dockerfile.dockerignore")
    users = [words[0] for word, words in steps if word == "USER"]
    problems += [] if users and users[-1] not in ("root", "0") else ["runs as root"]
    problems += [] if any(word == "HEALTHCHECK" for word, _ in steps) else ["no HEALTHCHECK"]
    problems += ["a secret"] if re.search(r"(?i)(password|auth_token)\s*=", text) else []
    if (
        f'"$(bgrpo --version)" = {PROJECT["version"]}' not in text
        or "g++" not in text
        or "RAY_AUTH_MODE=token" not in text
    ):
        problems.append("without the version's check, g++, or the token")
    return problems


def job_configs(entrypoint: str) -> list[TrainConfig]:
    """The training configurations that ``python -m ray_jobs.NAME …`` comes to.

    Raises:
        UserError: a configuration or a key that does not exist.
        ValueError: another command, or another module.
    """
    python, option, module, *arguments = shlex.split(entrypoint)
    if (python, option) != ("python", "-m") or module not in ENTRY_POINTS:
        raise ValueError(f"{entrypoint}: expected python -m and one of {', '.join(ENTRY_POINTS)}")
    command: Any = typer.main.get_command(app)
    name = module.removeprefix("ray_jobs.")
    given = command.commands[name].make_context(name, arguments).params
    if name == "sweep":
        tree = load_config(SweepConfig, given["config"], given["overrides"] or [])
        return TrialConfigs(tree, Path(tree.run.dir)).check()
    return [load_config(TrainConfig, given["config"], given["overrides"] or [])]


def check_job_fits(entrypoint: str, groups: list[tuple[int, dict[str, float]]], spot: dict[str, float]) -> list[str]:
    """A job has room on the smallest cluster that the autoscaler may leave, and its learners never on a spot node.

    Args:
        entrypoint: of the job.
        groups: for each group of nodes, the least number and what one of them has.
        spot: what a spot node has.
    """
    units = {unit for _, node in groups for unit in node}
    smallest = {unit: sum(count * node.get(unit, 0.0) for count, node in groups) for unit in units}
    problems = []
    try:
        for config in job_configs(entrypoint):
            demands = {demand.name: demand.reserved for demand in training_demand(config)}
            check_room(training_demand(config), smallest)
            if all(share <= spot.get(unit, 0.0) for unit, share in demands["learner.workers"].items()):
                problems.append("a learner fits on a spot node")
            problems += [
                f"{name} may run on nodes of any kind"
                for name, reserved in demands.items()
                if not any(unit.endswith("_node") for unit in reserved)
            ]
            if "verifier.processes" not in demands:
                problems.append("verifiers may run on nodes of any kind")
    except (UserError, ValueError) as error:
        problems.append(str(error))
    return problems


def with_change(tree: Any, path: str, value: Any) -> Any:
    """A copy with one value changed, or taken away when ``value`` is ``...``; lists are indexed by number."""
    changed = json.loads(json.dumps(tree))  # unlike deepcopy, without the parts that YAML's anchors share
    *outer, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    place = changed
    for key in outer:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return changed


def break_one(check: Callable[[Any], list[str]], tree: Any, path: str, value: Any, problem: str) -> None:
    found = check(with_change(tree, path, value))
    assert any(problem in text for text in found), found
