"""What Ray uploads with a working_dir, packed like Ray by .rayignore and .gitignore, to know its size in advance."""

import logging
import tempfile
import zipfile
from pathlib import Path

# No public call packs without sending; these two are what the Jobs API itself calls.
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

UPLOAD_LIMIT_BYTES = 100 * 2**20
"""The dashboard's largest request; it answers 413 above it."""

_quiet = logging.getLogger("steerlm.upload")
_quiet.setLevel(logging.ERROR)


def package_sizes(folder: Path) -> dict[str, int]:
    """File -> bytes in the package, of everything below `folder` that would be sent."""
    with tempfile.TemporaryDirectory() as apart:
        package = Path(apart) / "package.zip"
        create_package(
            str(folder),
            package,
            include_gitignore=True,
            excludes=list(get_runtime_env_default_excludes()),
            logger=_quiet,
        )
        with zipfile.ZipFile(package) as packed:
            return {item.filename: item.compress_size for item in packed.infolist() if not item.is_dir()}
