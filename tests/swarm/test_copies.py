"""Commands in copied trees change a workspace just as commands in mounted ones do."""

from __future__ import annotations

from pathlib import Path

import pytest
from session_parts import FILES, Bench, code_entry, files_at
from test_session_resume import coder, lead

from perilune.agent.sandbox import Probe, Sandbox, probe_machine
from perilune.backends.scripted import ScriptedBackend
from perilune.errors import SandboxError
from perilune.swarm import plan as planning
from perilune.swarm.copies import CopyingSandbox
from perilune.swarm.workspaces import OverlayWorkspace, Workspaces

COMMAND = """
cat pkg/one.py new.txt && ! test -e gone.py && ! test -e pkg/sub
echo changed >> pkg/one.py; rm pkg/two.py; mkdir made; echo x > made/x.txt; chmod +x keep.sh
rm -r folder; echo file > folder; ln -s keep.sh link; rm new.txt; mkdir -p __pycache__; touch __pycache__/a
touch built.log untouched.py
"""
NONE = Probe("none", False, "a test", "nothing")


def workspace_in(folder: Path) -> OverlayWorkspace:
    base = folder / "base"
    for path in ("pkg/one.py", "pkg/two.py", "pkg/sub/deep.py", "gone.py", "folder/in.py", "untouched.py"):
        (base / path).parent.mkdir(parents=True, exist_ok=True)
        (base / path).write_text(f"{path}\n")
    (base / "keep.sh").write_text("echo\n")
    (base / ".gitignore").write_text("*.log\n")
    return Workspaces(folder / "work", base).open("a1", 0)


@pytest.mark.parametrize("isolated", [True, False])
async def test_a_command_over_a_copy_leaves_what_it_leaves_over_a_mount(
    tmp_path: Path, isolated: bool
) -> None:
    sandboxes = [
        Sandbox.probe(),
        CopyingSandbox(probe_machine() if isolated else NONE, unsandboxed=not isolated),
    ]
    found = []
    for number, sandbox in enumerate(sandboxes):
        workspace = workspace_in(tmp_path / str(number))
        workspace.write_bytes("new.txt", b"new\n")
        (new,) = await workspace.changes()
        first = await sandbox.run(("rm", "-r", "gone.py", "pkg/sub"), workspace.view)
        assert first.exit_code == 0, first.output
        done = await sandbox.run(("sh", "-ec", COMMAND), workspace.view)
        assert (done.exit_code, done.output) == (0, "pkg/one.py\nnew\n"), done.output
        assert new.path == "new.txt"
        found.append(await workspace.changes())
        assert not (workspace.home / "tree").exists()
        assert not (tmp_path / str(number) / "base" / "made").exists()
    assert found[0] == found[1]
    assert [change.path for change in found[0]] == [
        *("folder", "folder/in.py", "gone.py", "keep.sh", "link", "made/x.txt"),
        *("pkg/one.py", "pkg/sub/deep.py", "pkg/two.py"),
    ]


async def test_a_session_runs_where_nothing_can_be_mounted(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ScriptedBackend([lead, coder], entry=code_entry()))
    sandbox = CopyingSandbox(NONE, unsandboxed=True)
    outcome = await bench.run(
        await bench.plan("Write a.txt.", check=("test", "-e", "a.txt")), sandbox=sandbox
    )
    wanted = {**FILES, "a.txt": "draft\nonce\nmore\n"}
    del wanted["README.md"]
    assert (outcome.status, files_at(bench.repo, outcome.tip)) == ("complete", wanted)


async def test_work_that_needs_commands_is_refused_where_none_can_be_isolated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "probe_machine", lambda: NONE)
    bench = Bench(tmp_path, ScriptedBackend([lead, coder], entry=code_entry()))
    with pytest.raises(SandboxError, match="unsandboxed"):
        await bench.plan("Write a.txt.")
    await Bench(tmp_path / "rename").plan()  # a rename runs no command
