"""Put a folder of weights, as `checkpoints.save` writes it, on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from lightning_csn.errors import InputError


def upload(
    folder: Path, repo_id: str, *, private: bool | None, revision: str | None, token: str | None, commit_message: str
) -> str:
    """Make the repository `repo_id` (owner/name) if need be, and put the folder's files there; the commit's address.

    revision: a branch, which is made if need be. token: of an account; None takes that of `hf auth login`. Raises
    InputError with the Hub's reason if it refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    api = HfApi(token=token, library_name="lightning_csn")
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message
        )
    except (OSError, HFValidationError) as error:  # the Hub's refusals are OSErrors
        raise InputError(f"{repo_id} was not pushed to the Hub: {error}") from error
    return commit.commit_url
