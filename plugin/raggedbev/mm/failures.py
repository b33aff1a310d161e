"""Failures that the user has to mend: an exception of a command-line tool in, one sentence out."""

from __future__ import annotations

import difflib
import inspect
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.registry import Registry

__all__ = ["expected_failure", "looked_for_in"]

_NO_KEY = re.compile(r"([\w.<>]+)\.__init__\(\) got an unexpected keyword argument '(\w+)'")
_NEEDS_KEYS = re.compile(r"([\w.<>]+)\.__init__\(\) missing \d+ required .*arguments?: (.*)")
_NO_TYPE = re.compile(r"(\S+) is not in the (\S+) registry")
_NO_FILE = re.compile(r"\[Errno 2\] No such file or directory: '(.*)'")


def expected_failure(error: Exception) -> str | None:
    """The sentence of an error that is the user's to mend; None for one that is a mistake of the program.

    Expected are bad values, files that cannot be read or written, and configs that name what is not registered or give
    it keys that it does not take.

    Args:
        error: As it was caught, with its traceback.
    """
    message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if isinstance(error, TypeError):
        return _about_keys(error, message)
    if isinstance(error, KeyError):
        return _about_type(error, message) if "registry" in message else None
    if not isinstance(error, ValueError | OSError):
        return None
    if "Original Traceback" in message:  # from a data worker; the last line is the error itself
        message = message.strip().splitlines()[-1].partition(": ")[2]
    missing = _NO_FILE.fullmatch(message)
    return f"{missing[1]} does not exist{looked_for_in(missing[1])}" if missing else message


def looked_for_in(path: str | Path) -> str:
    """What the error of a path that does not exist adds where the working directory decides; else nothing."""
    return "" if Path(path).is_absolute() else f" (looked for in {Path.cwd()})"


def _about_keys(error: TypeError, message: str) -> str | None:
    """The sentence where a config gives a class a key that it does not take, or lacks one that it needs."""
    built = next(_builds(error), None)
    if built is None:
        return None
    kind, given = built
    unknown, missing = _NO_KEY.fullmatch(message), _NEEDS_KEYS.fullmatch(message)
    found = unknown or missing
    if found is None:
        return None
    owner = _owner(error, kind, found[1])
    name = found[1] if owner is None else owner.__name__
    takes = [] if owner is None else _keys_of(owner)
    if unknown:
        from_config = _holds(given, unknown[2])  # else the key is not the config's, and the mistake is in the program
        return f"{name} takes no key {unknown[2]!r}{_did_you_mean(unknown[2], takes)}" if from_config else None
    keys = re.findall(r"'(\w+)'", missing[2])
    similar = [key for key in given if takes and key not in takes and difflib.get_close_matches(key, keys)]
    instead = f", but got {similar[0]!r}" if similar else ""
    return f"{name} needs the key{'s' * (len(keys) > 1)} {missing[2]}{instead}"


def _about_type(error: KeyError, message: str) -> str:
    """The sentence where a config names a type that is not registered."""
    found = _NO_TYPE.match(message)
    registry = next((scope["registry"] for scope in _scopes(error) if "registry" in scope), None)
    if found is None or not isinstance(registry, Registry):
        return message
    names = _types_of(registry)
    hint = _did_you_mean(found[1].rpartition(".")[2], names, cutoff=0.75)
    hint = hint or "; check the name, and that custom_imports has the module that registers it"
    return f"{found[1]} is not in the {found[2]} registry{hint}"


def _scopes(error: Exception) -> Iterator[Mapping[str, Any]]:
    """Local variables of the frames of mmengine's build functions that an error went through, innermost first."""
    frames = []
    trace: types.TracebackType | None = error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    for frame in reversed(frames):
        if Path(frame.f_code.co_filename).parts[-3:] == ("mmengine", "registry", "build_functions.py"):
            yield frame.f_locals


def _builds(error: Exception) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """What was being built from a config when the error came, innermost first: class or function, and its keys."""
    for scope in _scopes(error):
        kind = scope.get("obj_cls", scope.get("scheduler_cls"))
        if kind is not None and "args" in scope:
            registered = scope["registry"].module_dict.get(getattr(kind, "__name__", ""))
            yield registered or kind, scope["args"]


def _owner(error: Exception, kind: Any, qualified: str) -> type | None:
    """The class that refused the keys: `kind` or a base of it, else one that the raising code names."""
    if isinstance(kind, type) and qualified in (base.__qualname__ for base in kind.__mro__):
        return kind
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    named = trace.tb_frame.f_globals.get(qualified)
    return named if isinstance(named, type) else None


def _keys_of(owner: type) -> list[str]:
    """Names of the arguments of a class and of its bases."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    constructors = [vars(base).get("__init__") for base in owner.__mro__]
    signatures = [inspect.signature(method) for method in constructors if inspect.isfunction(method)]
    keys = [p.name for signature in signatures for p in signature.parameters.values() if p.kind in named]
    return [key for key in dict.fromkeys(keys) if key != "self"]


def _types_of(registry: Registry) -> dict[str, str]:
    """Names that a config can give, by the name without scope: of the registry, its parents, and the scopes beside."""
    lineage = [registry]
    while lineage[-1].parent is not None:
        lineage.append(lineage[-1].parent)
    names = {name: f"{child.scope}.{name}" for child in lineage[-1].children.values() for name in child.module_dict}
    return names | {name: name for known in lineage for name in known.module_dict}


def _did_you_mean(name: str, known: Mapping[str, str] | list[str], cutoff: float = 0.6) -> str:
    close = difflib.get_close_matches(name, known, 1, cutoff)
    return f"; did you mean {(known[close[0]] if isinstance(known, Mapping) else close[0])!r}?" if close else ""


def _holds(config: Any, key: str) -> bool:
    """Whether a config has a key, at any depth."""
    if isinstance(config, Mapping):
        return key in config or any(_holds(value, key) for value in config.values())
    return isinstance(config, list | tuple) and any(_holds(value, key) for value in config)
