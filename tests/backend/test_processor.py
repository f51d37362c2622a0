"""How much of the processor this process may use, read from made-up files."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxbert.backend.processor import cpu_limit


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("0::/a/b\n", {"a/cpu.max": "30000 10000\n", "a/b/cpu.max": "max 100000\n", "a/b/c/cpu.max": "1 1"}, 3),
        ("0::/outside\n", {"cpu.max": "200000 100000\n"}, 2),
        ("2:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ("2:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("3:cpuset:/a\n1:cpu:/a\n0::/\n", {"cpu/a/cpu.cfs_quota_us": "4", "cpu/a/cpu.cfs_period_us": "1"}, 4),
        ("0::/\n", {"cpu.max": "garbage"}, None),
        ("0::/\n", {"cpu.max": "1 0"}, None),
        ("0::/\n", {"cpu.max": "100000 -1"}, None),
        ("0::/\n", {"cpu.max": "inf 100000"}, None),
        ("0::/\n", {"cpu.max": "1e400 1"}, None),
        ("garbage\n\n0::/\n", {"cpu.max": "100000 100000"}, 1),
        ("2:cpu,cpuacct:/\n", {"cpu,cpuacct/cpu.cfs_quota_us": "7", "cpu,cpuacct/cpu.cfs_period_us": "2"}, 4),
        (None, {}, None),
    ],
)
def test_the_limit_of_the_control_groups(
    tmp_path: Path, groups: str | None, files: dict[str, str], limit: int | None
) -> None:
    if groups is not None:
        (tmp_path / "cgroup").write_text(groups)
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text)
    assert cpu_limit(tmp_path / "cgroup", tmp_path / "fs") == limit
