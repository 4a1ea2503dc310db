"""An Iceberg catalog of one file, `lake`, as a command finds it: in the environment."""

from pathlib import Path
from typing import Any

import pytest


def lake(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The catalog, and for our own code too; the test is skipped where pyiceberg is not installed."""
    return named_lake(root, monkeypatch).load_catalog("lake")


def named_lake(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """pyiceberg's catalogs, with `lake` at `root` among those that it knows; opens none."""
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__URI", f"sqlite:///{root}/catalog.db")
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__WAREHOUSE", f"file://{root}/warehouse")
    catalogs = pytest.importorskip("pyiceberg.catalog", reason="needs the extra lake: pyiceberg is not installed")
    # pyiceberg reads the environment once, when it is imported: an earlier test may have done that.
    config = pytest.importorskip("pyiceberg.utils.config")
    monkeypatch.setattr(catalogs, "_ENV_CONFIG", config.Config())
    return catalogs
