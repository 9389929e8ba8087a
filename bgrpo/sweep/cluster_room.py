"""How many trials have room on a cluster at a time; trials whose processes only half fit would wait for each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Bundle = Mapping[str, float]
"""What one process reserves, or a node has: amounts by the name of the Ray resource."""

ROUNDING = 1e-6  # of sums of fractions


def fits(nodes: Sequence[Bundle], trials: Sequence[Sequence[Bundle]]) -> bool:
    """Whether all processes of all trials can be placed at once.

    Largest first, each on the first node that has room: never says yes where Ray could not.

    Args:
        nodes: total resources of each node.
        trials: the processes of each trial.
    """
    free = [dict(node) for node in nodes]
    bundles = [bundle for trial in trials for bundle in trial]
    for bundle in sorted(bundles, key=lambda item: (item.get("GPU", 0.0), item.get("CPU", 0.0)), reverse=True):
        with_room = (n for n in free if all(n.get(unit, 0.0) + ROUNDING >= share for unit, share in bundle.items()))
        node = next(with_room, None)
        if node is None:
            return False
        for unit, share in bundle.items():
            node[unit] = node.get(unit, 0.0) - share
    return True


def most_at_a_time(nodes: Sequence[Bundle], trial: Sequence[Bundle], limit: int) -> int:
    """The largest number of equal trials, up to ``limit``, that have room together."""
    count = 0
    while count < limit and fits(nodes, [trial] * (count + 1)):
        count += 1
    return count


def total(trial: Sequence[Bundle]) -> dict[str, float]:
    """What a whole trial reserves."""
    return {unit: sum(bundle.get(unit, 0.0) for bundle in trial) for unit in ("CPU", "GPU")}


def arithmetic(demands: Sequence[tuple[str, int, Bundle]], nodes: Sequence[Bundle], at_a_time: int) -> str:
    """The sum that says how many trials run at a time, for people.

    Args:
        demands: name, number and reservation of each kind of process of one trial.
        nodes: total resources of each node.
        at_a_time: what came out.
    """
    has, parts = total(nodes), []
    needs = total([bundle for _, count, bundle in demands for _ in range(count)])
    for unit in ("CPU", "GPU"):
        if needs[unit]:
            terms = " + ".join(f"{name} {count} × {bundle[unit]:g}" for name, count, bundle in demands if bundle[unit])
            parts.append(f"{terms} = {needs[unit]:g} {unit}, the cluster has {has[unit]:g}")
    return f"a trial needs {'; '.join(parts) or 'nothing reserved'}: {at_a_time} at a time"
