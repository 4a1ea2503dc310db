"""What a command's last line says of the machine."""

from pathlib import Path

from jobs.runner.machine import machine


def test_the_first_processor_speaks_for_all(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(
        "processor\t: 0\nmodel name\t: A: fast one\nflags\t\t: fpu avx512f\n\nprocessor\t: 1\nflags\t\t: x\n"
    )
    found = machine(info)
    assert found["processor"] == "A: fast one"
    assert found["flags"] == "fpu avx512f"
    assert isinstance(found["cores"], int)
    assert found["cores"] >= 1


def test_an_arm_calls_its_flags_features_and_a_missing_file_leaves_them_out(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nFeatures\t: asimd sve\n")
    assert machine(info)["flags"] == "asimd sve"
    nothing = machine(tmp_path / "none")
    assert nothing["flags"] == ""
    assert nothing["processor"]
