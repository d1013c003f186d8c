"""What ``sudo`` leaves in a user's checkout is the user's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emulator.scenario.rundir import hand_over

NOBODY = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def make_run(folder: Path) -> Path:
    run = folder / "runs" / "demo"
    (run / "flannel").mkdir(parents=True)
    (run / "flannel" / "plan.json").write_text("{}")
    return run


def test_run_in_a_users_folder_becomes_the_users(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "outside").write_text("")
    os.chown(run.parent, NOBODY, NOBODY)
    hand_over(run)
    owned = [run, run / "flannel", run / "flannel" / "plan.json", run / "link"]
    assert [path.lstat().st_uid for path in owned] == [NOBODY] * 4
    assert (tmp_path / "outside").stat().st_uid == 0  # a link is given away, not what it points to


def test_run_in_roots_own_folder_stays_roots(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    hand_over(run)
    assert run.stat().st_uid == 0
