"""A pretrained model out of an installed package as the policy to serve: converted once, then kept. Needs no run."""

import tempfile
import time

from data.attributes import shipped
from data.errors import UserError
from data.storage import Storage

PACKAGE = "package:"
"""Before the name of an installed Python package that holds a model; as in `base.model` of a preset."""


def untrained(policy: str, attributes: str, storage: Storage) -> Storage:
    """The policy's folder below `storage`: made now, or by an earlier start with the same package and attributes.

    Raises UserError if there is no such package or no such shipped schema.
    """
    schema = shipped(attributes)
    folder = storage / "untrained" / f"{policy.removeprefix(PACKAGE)}-{schema.fingerprint}"
    if not (folder / "config.json").exists():
        # torch: only who needs it waits for it.
        from actors.modeling.untrained import save_untrained

        started = time.monotonic()
        print(f"serve: converting {policy}, once", flush=True)
        with tempfile.TemporaryDirectory() as local:
            try:
                num_parameters = save_untrained(policy, schema, local)
            except UserError as error:
                raise UserError(str(error).replace("base.model", "policy")) from None
            folder.upload(local)
        seconds = time.monotonic() - started
        print(f"serve: {num_parameters:,} parameters in {folder.uri} after {seconds:.0f} s", flush=True)
    return folder
