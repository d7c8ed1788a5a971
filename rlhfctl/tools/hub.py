"""Upload an exported folder to the Hugging Face Hub: `rlhfctl export --push-to-hub`.

Reads the login that huggingface_hub keeps. Finds out whether an upload is possible before the export begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from rlhfctl.errors import RlhfctlError

# The base class of all errors of the HTTP library, which is another one in other releases of huggingface_hub.
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]
_OPTION = "--push-to-hub"
_UNAUTHORIZED, _FORBIDDEN = 401, 403


@dataclass
class Push:
    """One upload: the repository, and whether it must be private. `existed`: it was there before."""

    repo_id: str
    private: bool = False
    api: HfApi = field(default_factory=HfApi)
    existed: bool = False

    def prepare(self) -> None:
        """Raise RlhfctlError unless the user is logged in and the repository can be written; upload nothing."""
        if constants.HF_HUB_OFFLINE:
            raise RlhfctlError(
                "the Hub cannot be reached: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set",
                where=_OPTION,
                fix="unset it, or export to a folder only and upload that later: hf upload",
            )
        with self._explained("ask the Hub who you are"):
            self.api.whoami()
        with self._explained("look the repository up"):
            try:
                found = self.api.model_info(self.repo_id)
            except RepositoryNotFoundError:
                return
        self.existed = True
        if self.private and not found.private:
            raise RlhfctlError(
                f"the repository {self.repo_id} is public already, and --private does not change that",
                where=_OPTION,
                fix="make it private in its settings on the Hub first, or name another one",
            )

    def upload(self, folder: Path, what: str) -> str:
        """Upload the folder as one commit; make the repository if it is missing. Returns a sentence for the user."""
        kept = f"the export itself is complete: {folder}; upload it later with: hf upload {self.repo_id} {folder}"
        with self._explained("upload", kept):
            url = self.api.create_repo(self.repo_id, private=self.private or None, exist_ok=True)
            self.api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message=f"rlhfctl: {what}")
        added = " (a commit was added to what was there)" if self.existed else ""
        return f"uploaded it to {url}{added}"

    @contextmanager
    def _explained(self, doing: str, fix: str | None = None) -> Iterator[None]:
        """Turn errors of the Hub and of the network into RlhfctlError."""
        try:
            yield
        except RepositoryNotFoundError:
            raise
        except HFValidationError as error:
            raise RlhfctlError(f"no name of a repository: {error}", where=_OPTION, fix="owner/name") from error
        except LocalTokenNotFoundError as error:
            raise RlhfctlError("you are not logged in to the Hub", where=_OPTION, fix="hf auth login") from error
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status == _UNAUTHORIZED:
                raise RlhfctlError(
                    "the Hub does not accept your token", where=_OPTION, fix=fix or "log in again: hf auth login"
                ) from error
            refused = f"the Hub refused to {doing} ({status}): {_first_line(error)}"
            may = "use a token that may write to this repository" if status == _FORBIDDEN else "try again later"
            raise RlhfctlError(refused, where=f"{_OPTION} {self.repo_id}", fix=fix or may) from error
        except (_HTTP_ERROR, OfflineModeIsEnabled, ConnectionError) as error:
            raise RlhfctlError(
                f"the Hub cannot be reached: {_first_line(error)}", where=_OPTION, fix=fix or "check the network"
            ) from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
