"""The one registry of linescan: names in configs -> backbones.

`BACKBONES` is a child of MMEngine's MODELS with scope `linescan`: a config says `type="linescan.HybridBackbone"` whatever its default scope
is, once `linescan.backbones` is imported (`custom_imports = dict(imports=["linescan.backbones"])`).

A third party adds a backbone in its own package, in one of two ways:

1. `@BACKBONES.register_module()` on the class, and its module in the config's `custom_imports`;
2. an entry point in the group `linescan.backbones` of an installed package. It names a module, whose import registers backbones by way 1,
   or a class (or a function that builds a backbone), which is registered under the entry point's name. Entry points are loaded when a
   name is not found and when the names are listed, never at import.

Every registered backbone has to keep the contract of `pyramid.py`, whether it inherits from `Pyramid` or not. Instances are checked when
they are built, and their outputs at every forward pass.
"""

import functools
import inspect
import warnings
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from mmengine.registry import MODELS, Registry

from .names import unknown
from .pyramid import enforce_contract

ENTRY_POINT_GROUP = "linescan.backbones"


class PluginError(ImportError):
    """An entry point of the group `linescan.backbones` could not be loaded."""


def _checked(factory: Callable[..., Any]) -> Callable[..., Any]:
    """`factory` with the contract enforced on what it builds.

    A class is changed in place (its `__init__` ends with the check), not wrapped, because MMEngine builds through other registries and lazy
    configs name the class itself: neither passes through `BACKBONES.build`.
    """
    if not inspect.isclass(factory):

        @functools.wraps(factory)
        def build(*args: Any, **kwargs: Any) -> Any:
            return enforce_contract(factory(*args, **kwargs))

        return build

    init = factory.__init__
    if getattr(vars(factory).get("__init__"), "enforces_contract", False):
        return factory

    @functools.wraps(init)
    def checked_init(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        # A subclass is not finished yet when this returns; it is checked if it is registered itself.
        if type(self) is factory:
            enforce_contract(self)

    checked_init.enforces_contract = True
    factory.__init__ = checked_init
    return factory


class BackboneRegistry(Registry):
    """MMEngine's registry, plus the Pyramid contract and the entry points of installed packages."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._plugins_loaded: set[str] = set()

    def _register_module(self, module: Callable[..., Any], module_name: str | list[str] | None = None, force: bool = False) -> None:
        super()._register_module(_checked(module) if callable(module) else module, module_name, force)

    def get(self, key: str) -> Any:
        """The class or function registered as `key` ("Name" or "linescan.Name").

        Raises:
            KeyError: no such backbone; the message names the near ones.
            PluginError: no such backbone, and an entry point that might have had it is broken.
        """
        scope, name = self.split_scope_key(key)
        if scope not in (None, self.scope):
            return super().get(key)
        self.import_from_location()
        if name not in self._module_dict:
            broken = self._load_plugins()
            if name in self._module_dict:
                for problem in broken:
                    warnings.warn(str(problem), stacklevel=2)
            elif scope is not None or not self._in_parents(name):
                if broken:
                    raise PluginError(f"{unknown(name, self._module_dict, 'backbone')} {' '.join(map(str, broken))}") from broken[0]
                raise KeyError(unknown(name, self._module_dict, "backbone"))
        return super().get(key)

    def __contains__(self, key: str) -> bool:
        scope, name = self.split_scope_key(key)
        return scope in (None, self.scope) and name in self.names()

    def names(self) -> list[str]:
        """All backbones, those of installed packages included, sorted.

        Raises:
            PluginError: an entry point is broken; the message names the distribution and the entry point.
        """
        self.import_from_location()
        broken = self._load_plugins()
        if broken:
            raise PluginError(" ".join(map(str, broken))) from broken[0]
        return sorted(self._module_dict)

    def _in_parents(self, name: str) -> bool:
        parent = self.parent
        while parent is not None:
            if name in parent.module_dict:
                return True
            parent = parent.parent
        return False

    def _load_plugins(self) -> list[PluginError]:
        """Load the entry points that are not loaded yet; the errors of those that cannot be."""
        broken = []
        for point in entry_points(group=ENTRY_POINT_GROUP):
            identity = f"{point.name} = {point.value}"
            if identity in self._plugins_loaded:
                continue
            try:
                self._load_plugin(point)
            except Exception as error:
                owner = f"{point.dist.name} {point.dist.version}" if point.dist is not None else "an unknown distribution"
                problem = PluginError(
                    f"The entry point '{identity}' (group {point.group}) of {owner} failed: {type(error).__name__}: {error}"
                )
                problem.__cause__ = error
                broken.append(problem)
            else:
                self._plugins_loaded.add(identity)
        return broken

    def _load_plugin(self, point: EntryPoint) -> None:
        found = point.load()
        if inspect.ismodule(found):
            return
        if not callable(found):
            raise TypeError(f"expected a module, a class or a function that builds a backbone, got {type(found).__name__}")
        if all(inspect.unwrap(known) is not found for known in self._module_dict.values()):
            self.register_module(name=point.name, module=found)


BACKBONES = BackboneRegistry("backbone", parent=MODELS, scope="linescan", locations=["linescan.backbones"])


def list_backbones() -> list[str]:
    """Sorted names of all registered backbones, those of installed packages included."""
    return BACKBONES.names()
