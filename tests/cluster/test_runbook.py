"""The runbook and SECURITY.md: every command parses or says what it needs, every file they name is there."""

from __future__ import annotations

import re
import shlex

import pytest
from cluster_file_checks import CLUSTER, check_job_fits, read_all
from runbook_checks import check_command, check_ray_start, commands_of

README = (CLUSTER / "README.md").read_text("utf-8")


@pytest.mark.parametrize(("command", "mark"), commands_of(README))
def test_each_command_of_the_runbook_parses_or_says_what_it_needs(command: str, mark: str) -> None:
    assert check_command(command, mark) == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("bgrpo train --config quickstart", "carries no mark"),
        ("bgrpo cluster locale  # run by a test", "no command 'locale'"),
        ("bgrpo cluster local --max-node 3  # run by a test", "No such option"),
        ("curl http://127.0.0.1:8265  # parsed by a test", "cannot be parsed here"),
        ("bgrpo train --config quickest  # parsed by a test", "no such file"),
        ("bgrpo train --confg quickstart  # parsed by a test", "No such option"),
        ("bgrpo sweep --config quick train.learner.speed=1  # parsed by a test", "speed"),
        ("ray job halt JOB  # parsed by a test", "no command 'halt'"),
        ("ray job stop --adress http://127.0.0.1:8265 JOB  # parsed by a test", "adress"),
        ("ray up --yes cluster/ray.yaml  # needs a cloud", "cluster/ray.yaml does not exist"),
        ("ray up --yes cluster/ray-cluster.yaml  # parsed by a test", "mark"),
        ("bgrpo train  # needs Kubernetes", "is not what"),
        ("kubectl apply -k cluster/kuberay  # parsed by a test", "cannot be parsed here"),
        ("kubectl apply -k cluster/kuberay  # fine", "mark 'fine'"),
    ],
)
def test_a_broken_command_is_noticed(line: str, problem: str) -> None:
    ((command, mark),) = commands_of(f"```sh\n{line}\n```")
    found = check_command(command, mark)
    assert any(problem in text for text in found), found


def test_the_training_command_for_aws_has_room_from_the_start() -> None:
    types = read_all(CLUSTER / "ray-cluster.yaml")[0]["available_node_types"]
    groups = [(entry.get("min_workers", 0), entry["resources"]) for entry in types.values()]
    (words,) = [shlex.split(command) for command, _ in commands_of(README) if "run.dir=/mnt/bgrpo/runs" in command]
    at = words.index("--submit")
    entrypoint = shlex.join(["python", "-m", "ray_jobs.train", *words[2:at], *words[at + 2 :]])
    assert check_job_fits(entrypoint, groups, types["rollout"]["resources"]) == []
    assert "too small" in check_job_fits(f"{entrypoint} rollout.actors=3", groups, types["rollout"]["resources"])[0]


def test_ray_knows_every_option_that_nodes_start_with() -> None:
    launcher, compose = (read_all(CLUSTER / name)[0] for name in ("ray-cluster.yaml", "compose.yaml"))
    lines = [line for kind in ("head", "worker") for line in launcher[f"{kind}_start_ray_commands"]]
    starts = [
        line for line in lines + [s.get("command", "") for s in compose["services"].values()] if "ray start" in line
    ]
    assert len(starts) == 4
    assert [problem for line in starts for problem in check_ray_start(line)] == []
    assert "No such option" in check_ray_start(starts[0].replace("--num-cpus", "--num-cpu-cores"))[0]


def test_links_of_the_pages_lead_to_files() -> None:
    for page in (CLUSTER / "README.md", CLUSTER.parent / "SECURITY.md"):
        text = page.read_text("utf-8")
        for link in re.findall(r"\]\(([^)#]+)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
        for name in re.findall(r"`(tests/[\w/.]+)`", text):
            assert (CLUSTER.parent / name).exists(), f"{page.name}: {name}"
