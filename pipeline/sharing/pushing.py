"""Uploading an exported model to a new repository of the Hugging Face hub."""

from __future__ import annotations

import shlex
from pathlib import Path

from pipeline.errors import PipelineError, RecipeError


def check_repository(name: str) -> None:
    """Refuse what the hub cannot have as the name of a repository.

    Raises:
        RecipeError: it is not ``ORG/NAME``.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise RecipeError(f"--push {name}: {error}") from None
    if name.count("/") != 1:
        raise RecipeError(f"--push {name}: expected ORG/NAME")


def push(directory: Path, repository: str, *, public: bool) -> str:
    """Upload an exported model to a new repository of the hub; returns its address.

    Raises:
        PipelineError: the hub refuses, cannot be reached, or has such a repository.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        address = api.create_repo(repository, private=not public, exist_ok=False)
        api.upload_folder(repo_id=repository, folder_path=directory, commit_message="Upload with tokenferry")
    except HfHubHTTPError as error:
        raise PipelineError(
            f"{directory} is complete, but the hub refused {repository}: {str(error).splitlines()[0]}\nLog in with "
            "`hf auth login`; a repository that is there already is never written to. To upload what is complete:\n  "
            f"{_upload_command(directory, repository, public=public)}"
        ) from None
    except Exception as error:  # the hub's library changes its HTTP library, and with it its errors, between versions
        raise PipelineError(
            f"{directory} is complete, but pushing it to {repository} failed: {type(error).__name__}: {error}\n"
            f"To upload it later:\n  {_upload_command(directory, repository, public=public)}"
        ) from error
    return str(address)


def _upload_command(directory: Path, repository: str, *, public: bool) -> str:
    return shlex.join(["hf", "upload", repository, str(directory), *([] if public else ["--private"])])
