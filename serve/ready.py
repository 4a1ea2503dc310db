"""A policy and its predictor out of an exported adapter (`python -m jobs.export PRESET.yaml what=adapter`).

They are put together once, from the base model that the adapter names, and kept; another adapter is another folder.
"""

import tempfile
import time
from pathlib import PurePosixPath

from data.adapter_layout import ADAPTER
from data.errors import UserError
from data.storage import Storage

POLICY, PREDICTOR = "policy", "predictor"
WHOLE = "whole.json"
"""Written last: an object store shows the files of a folder one after the other."""


def is_adapter(folder: Storage) -> bool:
    return (folder / ADAPTER).exists()


def ready(adapter: Storage, storage: Storage) -> tuple[Storage, Storage | None]:
    """The folders of the policy and of its predictor, if it has one, below `storage`.

    Raises UserError if the base model is not there, or another one.
    """
    name, folder = _place(adapter, storage, "")
    if not (folder / WHOLE).exists():
        # torch: only who needs it waits for it.
        from actors.modeling.adapter import put_together

        started = time.monotonic()
        print(f"serve: putting {name} together, once", flush=True)
        with tempfile.TemporaryDirectory() as local, tempfile.TemporaryDirectory() as own:
            try:
                record = put_together(adapter.download(own), local)
            except UserError as error:
                raise UserError(f"policy is {name}: {error}") from None
            if record.predictor is not None:
                (folder / PREDICTOR).upload(f"{local}/{PREDICTOR}")
            (folder / POLICY).upload(f"{local}/{POLICY}")
        (folder / WHOLE).write_json({"adapter": adapter.uri})
        print(f"serve: {name} lies in {folder.uri} after {time.monotonic() - started:.0f} s", flush=True)
    has_predictor = (folder / PREDICTOR / "config.json").exists()
    return folder / POLICY, folder / PREDICTOR if has_predictor else None


def ready_base(adapter: Storage, storage: Storage) -> Storage:
    """The folder, below `storage`, of the adapter's base as a policy that is asked as the adapter's is, untrained.

    Raises UserError if the base model is not there, or another one.
    """
    name, folder = _place(adapter, storage, "-base")
    if not (folder / WHOLE).exists():
        from actors.modeling.adapter import save_base

        print(f"serve: making a policy of the base of {name}, once", flush=True)
        with tempfile.TemporaryDirectory() as local, tempfile.TemporaryDirectory() as own:
            try:
                save_base(adapter.download(own), local)
            except UserError as error:
                raise UserError(f"policy is base, and the adapter {name}: {error}") from None
            (folder / POLICY).upload(local)
        (folder / WHOLE).write_json({"adapter": adapter.uri})
    return folder / POLICY


def _place(adapter: Storage, storage: Storage, kind: str) -> tuple[str, Storage]:
    name = PurePosixPath(adapter.uri.rstrip("/")).name
    return name, storage / "ready" / f"{name}{kind}-{adapter.checksum()}"
