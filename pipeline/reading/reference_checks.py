"""Whether a recipe's references lead somewhere: ``pipeline validate``, which fetches nothing.

Files and packages are looked for where they are. Of repositories on the hub the form is checked and whether they are in
the local cache; ``--online`` asks the hub whether they exist, are open to this user and have the revision.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.keys import map_references
from pipeline.reading.loading import recipe_error
from pipeline.reading.problems import Location, Problem
from pipeline.recipe import Recipe
from stages.references import HubReference, Reference, ReferenceProblem, parse

_SECONDS = 20.0
"""How long the hub may take to answer."""


@dataclass(frozen=True)
class CheckedReferences:
    """What was found out.

    Attributes:
        local: how many files, directories and packages were found.
        hub: each reference to the hub -> the commit that it stands for; offline, the one that was cached, None where
            none was.
    """

    local: int
    hub: dict[str, str | None]

    @property
    def uncached(self) -> list[str]:
        """Those of which nothing is in the cache."""
        return [reference for reference, commit in self.hub.items() if commit is None]


def check_references(recipe: Recipe, *, online: bool) -> CheckedReferences:
    """Look for everything that the recipe refers to; nothing of it is read or fetched.

    Raises:
        RecipeError: holds every reference that has no known form or leads nowhere.
    """
    base = recipe.directory
    problems: list[Problem] = []
    found: dict[str, tuple[Reference, str | None] | ReferenceProblem] = {}
    for place, text in _references(recipe):
        if text not in found:
            try:
                reference = parse(text, base)
                found[text] = reference, _locate(reference, online=online)
            except ReferenceProblem as problem:
                found[text] = problem
        if isinstance(outcome := found[text], ReferenceProblem):
            problems.append(Problem(place, str(outcome)))
    if problems:
        raise recipe_error(list(dict.fromkeys(problems)), recipe.path, recipe.origins)
    pairs = [outcome for outcome in found.values() if not isinstance(outcome, ReferenceProblem)]
    hub = {str(reference): commit for reference, commit in pairs if isinstance(reference, HubReference)}
    return CheckedReferences(len({str(reference) for reference, _ in pairs} - hub.keys()), hub)


def _references(recipe: Recipe) -> Iterator[tuple[Location, str]]:
    """Every reference with the place where the recipe gives it."""
    for spec in recipe.stages.values():
        found: list[tuple[Location, str]] = []

        def note(location: Location, text: str, found: list[tuple[Location, str]] = found) -> str:
            found.append((location, text))
            return text

        map_references(spec.config, note)
        yield from ((spec.place(location), text) for location, text in found)


def _locate(reference: Reference, *, online: bool) -> str | None:
    """The commit of a repository, if it is known; None for what is on this machine."""
    if isinstance(reference, HubReference):
        return commit_on_hub(reference) if online else cached_commit(reference)
    reference.locate()
    return None


def cached_commit(reference: HubReference) -> str | None:
    """The commit of the snapshot in the local cache, which need not have every file; None if there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = snapshot_download(
            reference.repository, repo_type=reference.kind, revision=reference.revision, local_files_only=True
        )
    except LocalEntryNotFoundError:
        return None
    return snapshot.rstrip("/").rpartition("/")[2]


def commit_on_hub(reference: HubReference) -> str:
    """What the hub says that the reference stands for now.

    Raises:
        ReferenceProblem: there is no such repository or revision, it is not open to this user, or the hub cannot be
            reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    from stages.hub_errors import connection_errors

    hub = HfApi()
    try:
        info = hub.repo_info(
            reference.repository, repo_type=reference.kind, revision=reference.revision, timeout=_SECONDS
        )
        # Everyone may see what there is in a gated repository.
        hub.auth_check(reference.repository, repo_type=reference.kind)
    except RevisionNotFoundError:
        raise ReferenceProblem(f"{reference}: the repository has no revision {reference.revision!r}") from None
    except GatedRepoError:
        section = "datasets/" if reference.kind == "dataset" else ""
        raise ReferenceProblem(
            f"{reference}: the repository is gated: accept its terms at {hub.endpoint}/{section}{reference.repository} "
            "and log in with `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise ReferenceProblem(
            f"{reference}: the hub shows no such {reference.kind} repository: check the name; a private one needs "
            "`hf auth login`"
        ) from None
    except OfflineModeIsEnabled:
        raise ReferenceProblem(f"{reference}: HF_HUB_OFFLINE forbids to ask the hub; unset it for --online") from None
    except HfHubHTTPError as error:
        raise ReferenceProblem(f"{reference}: the hub refused: {str(error).splitlines()[0]}") from None
    except connection_errors() as error:
        raise ReferenceProblem(
            f"{reference}: the hub at {hub.endpoint} cannot be reached ({type(error).__name__}); without --online, "
            "only the form of the reference and the local cache are looked at"
        ) from None
    return info.sha or ""
