"""What the processor is and how much of it this process may use, read from made-up files."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxbert.backend.processor import cpu_limit, is_amd_with_avx512

AVX512 = "fma avx2 avx512f avx512dq avx512cd avx512bw avx512vl avx512_vnni"


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        (f"vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\nflags\t\t: {AVX512}\n\nflags\t: none\n", True),
        (f"vendor_id\t: GenuineIntel\nflags\t\t: {AVX512}\n\n", False),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: fma avx2 avx512f\n\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd\n", False),
        (None, False),
    ],
)
def test_an_amd_processor_with_avx512(tmp_path: Path, text: str | None, is_one: bool) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert is_amd_with_avx512(tmp_path / "cpuinfo") == is_one


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
