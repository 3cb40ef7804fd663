"""What `learnreg doctor` says of an installation that works, and of one that does not."""

import pytest

from learnreg.apps import doctor
from learnreg.apps.main import main
from tests.test_configs import run

pytestmark = pytest.mark.slow


def test_an_installation_that_works(capsys):
    main(["doctor"])
    told = capsys.readouterr().out
    for expected in ("torch", "MONAI", "SimpleITK", "Lightning", "cores", "memory", "CUDA", "hippocampus", "presets"):
        assert expected in told
    assert told.splitlines()[-1] == "Everything works."


def test_the_self_test_finds_the_shift():
    error, seconds = doctor.self_test("cpu")
    assert error < 0.15
    assert seconds > 0


def test_a_self_test_that_is_wrong_fails(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "self_test", lambda device: (2.5, 1.0))
    monkeypatch.setattr(doctor, "models", lambda: iter(()))
    with pytest.raises(SystemExit, match="1"):
        main(["doctor"])
    told = capsys.readouterr().out
    assert "FAILED: cpu" in told
    assert told.splitlines()[-1] == "1 problem(s)"


def test_a_broken_package_is_named_and_the_report_goes_on():
    """torch is blocked, as it would fail where a library is missing."""
    code = "import sys; sys.modules['torch'] = None\nfrom learnreg.apps.main import main\nmain(['doctor'])"
    done = run("-c", code)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "FAILED: torch" in done.stdout
    assert "pip install torch" in done.stdout
    assert "SimpleITK" in done.stdout
    assert "Self-test" in done.stdout
