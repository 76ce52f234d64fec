"""The sandbox, with real commands that try to get out."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perilune.agent import sandbox as sandbox_module
from perilune.agent.process import HeadTail
from perilune.agent.sandbox import Probe, ProcessLimits, ProcessResult, Sandbox, probe_machine
from perilune.agent.workspace import View
from perilune.errors import SandboxError

needs_sandbox = pytest.mark.skipif(
    probe_machine().kind == "none", reason=f"no sandbox on this machine: {probe_machine().reason}"
)
needs_overlay = pytest.mark.skipif(
    not probe_machine().overlay, reason=f"no overlays on this machine: {probe_machine().reason}"
)


async def shell(view: View, command: str, **limits: float) -> ProcessResult:
    chosen = ProcessLimits(**{"seconds": 20, **limits})  # type: ignore[arg-type]
    return await Sandbox.probe().run(("sh", "-c", command), view, chosen)


@pytest.fixture
def overlay(tmp_path: Path) -> View:
    view = View(upper=tmp_path / "upper", lower=tmp_path / "lower", work=tmp_path / "work")
    for folder in (view.upper, view.lower, view.work):
        assert folder is not None
        folder.mkdir()
    (tmp_path / "lower" / "a.txt").write_text("base\n")
    return view


@needs_sandbox
async def test_a_command_works_in_its_workspace(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("hello\n")
    result = await shell(View(upper=tmp_path), "cat a; echo err >&2; pwd; echo x > b; exit 3")
    assert (result.exit_code, result.output, result.timed_out) == (3, "hello\nerr\n/workspace\n", False)
    assert (tmp_path / "b").read_text() == "x\n"


@needs_sandbox
async def test_our_own_python_runs_inside(tmp_path: Path) -> None:
    result = await Sandbox.probe().run(("python", "-c", "import msgspec; print('yes')"), View(upper=tmp_path))
    assert result.output == "yes\n"


@needs_overlay
async def test_an_overlay_leaves_its_base_alone_and_no_mount_behind(overlay: View) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    assert overlay.lower is not None
    result = await shell(overlay, "cat a.txt; echo changed > a.txt; mkdir d; echo new > d/b")
    assert (result.exit_code, result.output) == (0, "base\n")
    assert (overlay.lower / "a.txt").read_text() == "base\n"
    assert (overlay.upper / "a.txt").read_text() == "changed\n"
    again = await shell(overlay, "cat a.txt d/b && rm a.txt && ls")
    assert again.output == "changed\nnew\nd\n"
    assert Path("/proc/self/mountinfo").read_text() == before
    assert sorted(os.listdir(overlay.lower)) == ["a.txt"]


@needs_overlay
async def test_a_command_cannot_pretend_that_the_sandbox_failed(overlay: View) -> None:
    result = await shell(overlay, "echo mount: /workspace: permission denied; exit 125")
    assert result.exit_code == 125


@needs_overlay
async def test_a_workspace_that_cannot_be_mounted_is_no_answer_of_the_command(tmp_path: Path) -> None:
    for name in ("lower", "upper"):
        (tmp_path / name).mkdir()
    view = View(upper=tmp_path / "upper", lower=tmp_path / "lower", work=tmp_path / "gone")
    with pytest.raises(SandboxError, match="cannot mount the workspace: mount:"):
        await shell(view, "true")


@needs_sandbox
async def test_no_network(tmp_path: Path) -> None:
    """A server of this machine, reachable from here, is not reachable from inside."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        socket.create_connection(("127.0.0.1", port), 2).close()
        result = await Sandbox.probe().run(("python", "-c", program), View(upper=tmp_path))
    assert result.exit_code == 1
    assert "ConnectionRefusedError" in result.output or "unreachable" in result.output
    outside = await shell(View(upper=tmp_path), "cat /proc/net/dev | tail -n +3 | cut -d: -f1")
    assert outside.output.split() == ["lo"]


@needs_sandbox
async def test_nothing_outside_can_be_read_or_written(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(secret)
    result = await shell(
        View(upper=inside),
        f"cat {secret}; cat link; cat /etc/shadow; cat /proc/1/root{secret};"
        "for f in /x /etc/x /usr/x /bin/x /usr/bin/sh; do echo x > $f; done; ls /home; ls /root;"
        "mount -t tmpfs t /usr; mknod /tmp/d b 8 0; chroot /; true",
    )
    assert "s3cret" not in result.output
    assert "root:x:" not in result.output
    assert result.output.count("Read-only file system") + result.output.count("Permission denied") >= 5
    assert secret.read_text() == "s3cret"
    assert not Path("/x").exists()


@needs_sandbox
async def test_nothing_is_privileged_inside(tmp_path: Path) -> None:
    result = await shell(
        View(upper=tmp_path), "id -u; grep -h Cap /proc/self/status; grep NoNewPrivs /proc/self/status"
    )
    uid, *lines = result.output.split("\n")
    assert uid == "1000"
    assert {line.split()[1] for line in lines if line.startswith("Cap")} == {"0" * 16}
    assert "NoNewPrivs:\t1" in lines
    nested = await shell(View(upper=tmp_path), "unshare --user true")
    assert nested.exit_code != 0


@needs_sandbox
async def test_other_processes_are_neither_seen_nor_killed(tmp_path: Path) -> None:
    victim = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        result = await shell(
            View(upper=tmp_path), f"kill -9 {victim.pid}; kill -9 -1; ls /proc | grep -c '^[0-9]'"
        )
        assert victim.returncode is None
        assert result.exit_code in (0, 137)
        os.kill(victim.pid, 0)
    finally:
        victim.kill()
        await victim.wait()


@needs_sandbox
async def test_our_environment_is_not_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERILUNE_API_KEY", "plk_secret")
    result = await Sandbox.probe().run(("env",), View(upper=tmp_path), env={"GIVEN": "yes"})
    assert "plk_secret" not in result.output
    assert "GIVEN=yes" in result.output.splitlines()
    assert "HOME=/tmp" in result.output.splitlines()


@needs_sandbox
async def test_a_time_out_kills_everything_the_command_started(tmp_path: Path) -> None:
    began = time.monotonic()
    result = await shell(
        View(upper=tmp_path), "echo begun; trap '' TERM; setsid sleep 987 & sleep 987", seconds=0.5
    )
    assert result.timed_out
    assert result.output == "begun\n"
    assert time.monotonic() - began < 15
    assert not _running("sleep\0987")


@needs_sandbox
async def test_background_children_end_with_the_command(tmp_path: Path) -> None:
    result = await shell(View(upper=tmp_path), "setsid sleep 986 & echo done")
    assert (result.exit_code, result.output) == (0, "done\n")
    assert not _running("sleep\0986")


@needs_sandbox
async def test_cancelling_the_agent_ends_its_command(tmp_path: Path) -> None:
    task = asyncio.ensure_future(shell(View(upper=tmp_path), "touch started; sleep 985"))
    await _until(lambda: (tmp_path / "started").exists())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await _until(lambda: not _running("sleep\0985"))


@needs_overlay
async def test_killing_us_leaves_no_process_and_no_mount(overlay: View) -> None:
    program = (
        "import asyncio, sys; from pathlib import Path\n"
        "from perilune.agent.sandbox import Sandbox; from perilune.agent.workspace import View\n"
        "upper, lower, work = map(Path, sys.argv[1:])\n"
        "asyncio.run(Sandbox.probe().run(('sh', '-c', 'touch started; sleep 984'),"
        " View(upper=upper, lower=lower, work=work)))\n"
    )
    folders = [str(folder) for folder in (overlay.upper, overlay.lower, overlay.work)]
    source = str(Path(sandbox_module.__file__).parents[2])
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, *folders, env={**os.environ, "PYTHONPATH": source}
    )
    await _until(lambda: (overlay.upper / "started").exists())
    child.send_signal(signal.SIGKILL)
    await child.wait()
    await _until(lambda: not _running("sleep\0984"))
    assert str(overlay.upper) not in Path("/proc/self/mountinfo").read_text()
    shutil.rmtree(overlay.upper)


@needs_sandbox
async def test_a_fork_bomb_is_bounded(tmp_path: Path) -> None:
    result = await shell(
        View(upper=tmp_path), "i=0; while [ $i -lt 700 ]; do sleep 30 & i=$((i+1)); done; echo all started"
    )
    assert "all started" not in result.output
    assert "fork" in result.output.lower()


@needs_sandbox
async def test_memory_and_file_size_are_bounded(tmp_path: Path) -> None:
    box = Sandbox.probe()
    hungry = await box.run(
        ("python", "-c", "bytearray(900_000_000)"), View(upper=tmp_path), ProcessLimits(memory_mb=512)
    )
    assert "MemoryError" in hungry.output
    big = await shell(View(upper=tmp_path), "head -c 3000000 /dev/zero > big", file_mb=1)
    assert big.exit_code != 0
    assert (tmp_path / "big").stat().st_size <= 1_048_576
    full = await shell(View(upper=tmp_path), "head -c 3000000 /dev/zero > /tmp/big", tmp_mb=1)
    assert "No space left" in full.output


@needs_sandbox
async def test_endless_output_is_cut_in_the_middle(tmp_path: Path) -> None:
    result = await shell(
        View(upper=tmp_path), "echo first; yes | head -c 5000000; echo last", output_bytes=1_000
    )
    assert len(result.output) < 1_100
    assert result.output.startswith("first\n")
    assert result.output.endswith("last\n")
    assert "bytes left out" in result.output


@needs_overlay
async def test_git_folders_are_read_only(tmp_path: Path) -> None:
    (tmp_path / ".git" / "hooks").mkdir(parents=True)
    result = await shell(View(upper=tmp_path), "echo evil > .git/hooks/pre-commit; echo fine > a")
    assert "Read-only file system" in result.output
    assert not (tmp_path / ".git" / "hooks" / "pre-commit").exists()
    assert (tmp_path / "a").exists()


@needs_overlay
async def test_fifty_at_once_each_with_its_own_overlay(tmp_path: Path) -> None:
    lower = tmp_path / "lower"
    lower.mkdir()
    (lower / "a.txt").write_text("base\n")
    views = []
    for index in range(50):
        views.append(View(upper=tmp_path / f"u{index}", lower=lower, work=tmp_path / f"w{index}"))
        for folder in (views[-1].upper, views[-1].work):
            assert folder is not None
            folder.mkdir()
    box = Sandbox.probe(slots=50)
    runs = [
        box.run(("sh", "-c", f"read x < a.txt; echo $x {index} > a.txt; sleep 0.3"), view)
        for index, view in enumerate(views)
    ]
    results = await asyncio.gather(*runs)
    assert [result.exit_code for result in results] == [0] * 50
    assert [(view.upper / "a.txt").read_text() for view in views] == [f"base {i}\n" for i in range(50)]
    assert (lower / "a.txt").read_text() == "base\n"


@needs_sandbox
async def test_no_more_than_the_slots_run_at_once(tmp_path: Path) -> None:
    box = Sandbox.probe(slots=2)
    command = ("sh", "-c", "date +%s%N; sleep 0.1; date +%s%N")
    results = await asyncio.gather(*(box.run(command, View(upper=tmp_path)) for _ in range(6)))
    spans = [tuple(map(int, result.output.split())) for result in results]
    at_once = [sum(start <= moment < end for start, end in spans) for moment, _ in spans]
    assert max(at_once) == 2


@pytest.fixture
def folder_of_nobody() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="perilune-nobody-"))
    for name in ("lower", "upper", "work"):
        (folder / name).mkdir()
    (folder / "lower" / "a").write_text("base\n")
    for path in (folder, *folder.iterdir()):
        os.chown(path, 65_534, 65_534)
    yield folder
    shutil.rmtree(folder)


@needs_overlay
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user; the other tests ran as one")
def test_an_unprivileged_user_gets_the_same_sandbox(
    folder_of_nobody: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Our interpreter may live where nobody may not look.
    monkeypatch.setattr(sandbox_module, "_interpreter_folders", tuple)
    sandbox_module._read_only_system.cache_clear()
    view = View(*(folder_of_nobody / name for name in ("upper", "lower", "work")))
    command = sandbox_module._bubblewrap(
        ("sh", "-c", "id -u; cat a; rm a; echo b > b; ls"), view, ProcessLimits(), {}
    )
    done = subprocess.run(
        command, user=65_534, group=65_534, extra_groups=[], capture_output=True, check=False, cwd="/"
    )
    sandbox_module._read_only_system.cache_clear()
    assert (done.returncode, done.stdout) == (0, b"1000\nbase\nb\n"), done.stderr
    assert (folder_of_nobody / "lower" / "a").exists()


async def test_without_a_sandbox_commands_are_refused_with_the_mend(tmp_path: Path) -> None:
    box = Sandbox(Probe("none", False, "not installed: bwrap", "install bubblewrap"))
    assert not box.isolated
    with pytest.raises(SandboxError, match=r"not installed: bwrap.*install bubblewrap.*unsandboxed"):
        await box.run(("true",), View(upper=tmp_path))


async def test_unsandboxed_is_a_choice_that_is_said_aloud_and_still_limited(tmp_path: Path) -> None:
    if shutil.which("prlimit") is None:
        pytest.skip("prlimit is not installed")
    box = Sandbox(Probe("none", False, "not installed: bwrap", "install bubblewrap"), unsandboxed=True)
    assert box.describe().startswith("NO SANDBOX")
    result = await box.run(("sh", "-c", "ulimit -n; pwd"), View(upper=tmp_path), ProcessLimits(open_files=99))
    assert result.output == f"99\n{tmp_path}\n"
    with pytest.raises(SandboxError, match="copied workspace"):
        await box.run(("true",), View(upper=tmp_path, lower=tmp_path, work=tmp_path))


async def test_folders_that_cannot_be_mounted_are_refused(tmp_path: Path) -> None:
    box = Sandbox(Probe("bubblewrap", True, "given"))
    with pytest.raises(SandboxError, match="cannot be mounted"):
        await box.run(("true",), View(upper=tmp_path / "a,b", lower=tmp_path, work=tmp_path))
    with pytest.raises(SandboxError, match="needs its work folder"):
        await box.run(("true",), View(upper=tmp_path, lower=tmp_path))
    with pytest.raises(SandboxError, match="overlays are refused"):
        await Sandbox(Probe("bubblewrap", False, "given")).run(
            ("true",), View(upper=tmp_path, lower=tmp_path, work=tmp_path)
        )


@pytest.mark.parametrize("size", [1, 7, 100])
def test_head_and_tail_are_kept_whatever_the_pieces(size: int) -> None:
    data = "".join(f"{n:04}\n" for n in range(400)).encode()
    kept = HeadTail(100)
    for at in range(0, len(data), size):
        kept.feed(data[at : at + size])
    assert kept.text() == f"{data[:60].decode()}\n[... 1900 bytes left out ...]\n{data[-40:].decode()}"
    exact = HeadTail(100)
    exact.feed(data[:100])
    assert exact.text() == data[:100].decode()


def _running(arguments: str) -> bool:
    """Whether a process with these NUL-separated arguments is alive on this machine."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(arguments.encode()):
                return True
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
    return False


async def _until(condition: object, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.01)
