"""Where a local model's files are: a demo model comes with the package, a smoke model is made, a folder is used as it
is, a hub id has to be obtainable."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from models.catalog import ModelEntry
from models.errors import ModelUnavailable
from models.smoke import Kind, ensure_smoke_model

_HUB_TIMEOUT_S = 10.0
_DEMO = Path(__file__).parent / "demo" / "weights"


def is_offline(source: str) -> bool:
    """Whether the files of a model are on this machine for sure, so that no hub need be asked."""
    return source.startswith(("demo:", "smoke:")) or Path(source).expanduser().is_dir()


def resolve_source(entry: ModelEntry, data_dir: Path) -> str:
    """What an engine loads `entry` from: a folder, or a hub id that the hub's cache on this machine or the hub has.

    Blocks, for the hub up to some tens of seconds. Raises `ModelUnavailable`, in one line that says what to set.
    """
    source = entry.source
    if source.startswith("smoke:"):
        return str(ensure_smoke_model(cast(Kind, source.removeprefix("smoke:")), data_dir / "smoke"))
    folder = _DEMO / source.replace(":", "-") if source.startswith("demo:") else Path(source).expanduser()
    if source and folder.is_dir():
        return str(folder)
    if not source or source.startswith(("/", "./", "../", "~", "demo:")):
        raise ModelUnavailable(
            f"Model '{entry.name}': there is no folder '{source}'; set `source` to the model's folder or hub id."
        )
    _check_hub(entry)
    return source


def _check_hub(entry: ModelEntry) -> None:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository = entry.source
    try:
        if isinstance(try_to_load_from_cache(repository, "config.json"), str):
            return
        hf_hub_download(repository, "config.json", etag_timeout=_HUB_TIMEOUT_S)
    except GatedRepoError as error:
        raise ModelUnavailable(
            f"Model '{entry.name}': '{repository}' asks for its licence to be accepted; accept it on the hub and set "
            f"HF_TOKEN, or set `source` to a local folder."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError) as error:
        raise ModelUnavailable(
            f"Model '{entry.name}': '{repository}' is neither in the local cache nor can it be downloaded; set "
            f"`source` to a local folder, or download it where there is a network and set HF_HOME to that cache."
        ) from error
