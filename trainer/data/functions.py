"""Functions of the user's that every document goes through: `data.filter` (text -> bool), then `data.scrub` (text -> text)."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import xxhash

from zerofleet.trainer.errors import UserError


@dataclass(frozen=True)
class UserFunction:
    """`package.module:function`, as `setting` names it."""

    setting: str
    name: str
    returns: type
    """What it has to return for a text."""

    @cached_property
    def _function(self) -> Callable[[str], Any]:
        """Raises UserError when it cannot be imported."""
        module_name, _, path = self.name.partition(":")
        try:
            found: Any = importlib.import_module(module_name)
            for part in path.split("."):
                found = getattr(found, part)
        except Exception as error:  # whatever the module does when it is imported
            raise UserError(
                f"{self.setting}={self.name} cannot be imported ({type(error).__name__}: {error}): install its package, or put its "
                "folder on PYTHONPATH, where the run is started"
            ) from error
        if not callable(found):
            raise UserError(f"{self.setting}={self.name} is a {type(found).__name__}, not a function: name one")
        return found  # type: ignore[no-any-return]

    @property
    def fingerprint(self) -> str:
        """Hex of the source of the module that defines it: the helpers beside the function are part of what it does.

        What that module imports is not. Raises UserError when there is no source.
        """
        function = inspect.unwrap(self._function)
        try:
            module = inspect.getmodule(function)
            source = inspect.getsource(module if module is not None else function)
        except (OSError, TypeError) as error:
            raise UserError(
                f"{self.setting}={self.name} has no Python source ({error}), so a change of it would go unnoticed: wrap it in a "
                "function of a module of yours"
            ) from error
        return xxhash.xxh3_128_hexdigest(source.encode())

    def __call__(self, text: str, place: str) -> Any:
        """What the function returns. UserError when it fails, or returns something else than it should; `place` says on which text."""
        try:
            result = self._function(text)
        except Exception as error:
            raise UserError(
                f"{self.setting}={self.name} failed on {place} ({type(error).__name__}: {error}): it is called with the text of "
                "every document and has to cope with each"
            ) from error
        if not isinstance(result, self.returns):
            raise UserError(
                f"{self.setting}={self.name} returned {type(result).__name__} for {place}: it has to return {self.returns.__name__}"
            )
        return result


@dataclass(frozen=True)
class Functions:
    """What is done to each document before it is tokenised; nothing where neither is set."""

    filter: UserFunction | None
    scrub: UserFunction | None

    @staticmethod
    def of(filter_name: str | None, scrub_name: str | None) -> Functions:
        return Functions(
            UserFunction("data.filter", filter_name, bool) if filter_name else None,
            UserFunction("data.scrub", scrub_name, str) if scrub_name else None,
        )

    @property
    def fingerprints(self) -> dict[str, list[str]]:
        """Of those that are set: name, and hash of the source."""
        return {
            kind: [function.name, function.fingerprint]
            for kind, function in (("filter", self.filter), ("scrub", self.scrub))
            if function is not None
        }

    def applied(self, text: str, place: str) -> str | None:
        """The text that is left, None when the filter leaves it out. The filter sees it as it was."""
        if self.filter is not None and not self.filter(text, place):
            return None
        if self.scrub is None:
            return text
        scrubbed: str = self.scrub(text, place)
        try:
            scrubbed.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"data.scrub={self.scrub.name} returned half of a surrogate pair for {place}: that is no text"
            ) from error
        return scrubbed


AS_THEY_ARE = Functions(None, None)
"""Nothing is left out or altered."""
