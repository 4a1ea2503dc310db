"""Push a finished folder to the Hugging Face hub. Only the hub gets the token. Knows no model and no rows."""

import os
import tempfile
from typing import Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import disable_progress_bars, validate_repo_id

from data.storage import Storage
from jobs.runner.stage import StageError

TOKEN = "HF_TOKEN"
"""The only source of the token. A login's token file is ignored, so that nothing is pushed by accident."""


def require_token(repo: str) -> None:
    """Raise StageError if `repo` is no valid name, or the token is missing."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise StageError(
            f"push is {repo!r}, which is no name of a repository on the hub: {error}; write owner/name"
        ) from None
    if not os.environ.get(TOKEN):
        raise StageError(
            f"push is {repo}, but {TOKEN} is not set in the environment; put a token with write access there "
            "(https://huggingface.co/settings/tokens), or leave push out: `hf upload` can push it later"
        )


def push(folder: Storage, repo: str, kind: Literal["model", "dataset"], private: bool) -> str:
    """Upload the folder to the repository, creating it if needed; returns its address. Raises StageError on failure."""
    token = os.environ[TOKEN]
    disable_progress_bars()
    api = HfApi(token=token)
    try:
        with tempfile.TemporaryDirectory() as local:
            address = str(api.create_repo(repo, repo_type=kind, private=private, exist_ok=True))
            api.upload_folder(
                repo_id=repo, repo_type=kind, folder_path=folder.download(local), commit_message="python -m jobs.export"
            )
    except (HTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()).replace(token, f"${TOKEN}")
        raise StageError(
            f"{folder.uri} is whole, but {repo} did not take it: {reason or type(error).__name__}; "
            "run the same command again"
        ) from None
    return address
