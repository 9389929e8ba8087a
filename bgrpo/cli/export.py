"""What ``bgrpo export`` does."""

from __future__ import annotations

import os
from pathlib import Path

from bgrpo.display.terminal import PlainConsole
from bgrpo.errors import UserError
from bgrpo.runs.run_folder import RunFolder


def export_policy(name: str, runs: Path, out: Path, merge: bool) -> int:
    """Write a run's policy into a folder that ``from_pretrained`` reads, and say what it is.

    Args:
        name: of a run, its folder, or a policy's folder.
        runs: folder of all runs.
        out: folder to be written.
        merge: an adapter into its base's weights.
    """
    from bgrpo.learning.learner_state import policy_of_run
    from bgrpo.policies.io import check_target, load_policy, save_policy
    from bgrpo.policies.source import is_policy
    from bgrpo.runs.kept_policies import refuse_changed

    folder = Path(name) if is_policy(Path(name)) else policy_of_run(RunFolder.open(runs, name))
    if os.path.realpath(out) == os.path.realpath(folder):  # links in a circle too
        raise UserError(f"--out {out}: is the policy itself; give another folder")
    check_target(out)
    refuse_changed(folder)
    policy = load_policy(str(folder))
    adapter = None if merge else policy.adapter
    save_policy(policy.model, policy.tokenizer, out, adapter=adapter)
    what = "the whole policy" if adapter is None else f"an adapter of rank {adapter.rank}"
    PlainConsole().print(f"{folder}: {what} is in {out}", soft_wrap=True)
    if adapter is not None:
        PlainConsole().print(f"its base is {policy.model.config.name_or_path}; --merge writes both as one model")
    return 0
