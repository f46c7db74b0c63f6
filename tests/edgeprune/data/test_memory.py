"""How much memory there is, where a control group says less than the machine has."""

import pytest

from edgeprune.data.memory import control_group_limits, memory_bytes

UNLIMITED_1 = "9223372036854771712"  # What version 1 says where nothing is limited.


@pytest.mark.parametrize(
    ("line", "file", "text", "found"),
    [
        ("0::/user/job", "user/job/memory.max", "3000", [3000]),
        ("0::/user/job", "user/memory.max", "4000", [4000]),
        ("0::/user/job", "memory.max", "5000", [5000]),
        ("0::/user/job", "user/job/memory.max", "max", []),
        ("0::/user/job", "other/memory.max", "6000", []),
        ("4:memory:/job", "memory/job/memory.limit_in_bytes", "7000", [7000]),
        ("4:cpu,memory:/job", "memory/memory.limit_in_bytes", "8000", [8000]),
        ("4:memory:/job", "memory/job/memory.limit_in_bytes", UNLIMITED_1, [int(UNLIMITED_1)]),
        ("4:cpu:/job", "memory/job/memory.limit_in_bytes", "9000", []),
    ],
)
def test_limits_of_a_group_and_of_those_above_it_are_found(tmp_path, line, file, text, found):
    own, mounted = tmp_path / "own", tmp_path / "mounted"
    own.write_text(f"9:pids:/job\n{line}\n")
    (mounted / file).parent.mkdir(parents=True)
    (mounted / file).write_text(f"{text}\n")
    assert control_group_limits(own, mounted) == found


def test_without_control_groups_there_is_no_limit(tmp_path):
    assert control_group_limits(tmp_path / "none", tmp_path) == []


def test_this_machine_has_some_memory():
    assert 1e8 < memory_bytes() < 1e14
