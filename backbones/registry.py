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

On a command line a backbone is named `family:arch[:mixer]`, such as hybrid:small:bi_wkv or timm:deit_small. The family is the class name in
lower case without "Backbone"; `arch` is the constructor's first argument, where that is a name (its default is a string, or it has none),
and `mixer` its argument of that name. A backbone without architectures is named by its family alone.

What a backbone may tell about itself, as an attribute of its class (or of the function that builds it), else of the module of its class:

    ARCHS         names of its architectures, a dict or a sequence: the near names of an unknown one come from here
    MIXERS        names of the token mixers that its argument `mixer` takes. With "attention" among them, the profiler compares the backbone
                  with its attention twin
    TRANSFORMERS  architectures that are plain transformers (softmax attention is all that mixes tokens, no convolution stages): the
                  profiler's baselines. A name that goes on after one of them with "_" or "." is one, too: deit_small_patch16_224.
                  Read from the class or the function itself, never from its module
"""

import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from mmengine.registry import MODELS, Registry

from .names import choose, unknown
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

    def families(self) -> dict[str, str]:
        """Family -> registered name of its backbone; of two with one short name the second keeps its whole name in lower case."""
        found: dict[str, str] = {}
        for name in self.names():
            short = name.removesuffix("Backbone").lower()
            found[next(key for key in (short, name.lower(), name) if key and key not in found)] = name
        return found

    def named_config(self, name: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The config of the backbone `family:arch[:mixer]`.

        Args:
            name: see the module's docstring.
            options: further arguments of the constructor.

        Raises:
            ValueError: another form, a family that is not registered, a mixer that it does not have, or an option that its constructor does
                not take; the message names the near ones. The architecture is the constructor's to check.
        """
        family, *parts = name.split(":")
        backbone = choose(family, self.families(), "family of backbones")
        slots = self._slots(backbone)
        if not all(parts) or len(parts) > len(slots) or (slots[:1] not in ([], ["mixer"]) and not parts):
            shown = [f":{slot}" if i == 0 and slot != "mixer" else f"[:{slot}]" for i, slot in enumerate(slots)]
            raise ValueError(f"a backbone of this family is named {family}{''.join(shown)}, got {name!r}")
        named = dict(zip(slots, parts, strict=False))
        if "mixer" in named and (mixers := self.mixers(backbone)):
            choose(named["mixer"], dict.fromkeys(mixers), "mixer")
        arguments, is_open = self._arguments(backbone)
        for option in options or {}:
            if option not in arguments and not is_open:
                raise ValueError(unknown(option, arguments, f"argument of {backbone}"))
        return {"type": f"{self.scope}.{backbone}", **named, **(options or {})}

    def name_of(self, config: Mapping[str, Any]) -> str | None:
        """`family:arch[:mixer]` of a backbone's config, other arguments left out; None where the config has no such name."""
        backbone = self.registered_name(config.get("type"))
        if backbone is None:
            return None
        family = next(key for key, value in self.families().items() if value == backbone)
        defaults = inspect.signature(self.get(backbone)).parameters
        parts = []
        for slot in self._slots(backbone):
            value = config.get(slot, defaults[slot].default)
            if isinstance(value, str):
                parts.append(value)
            elif slot != "mixer" or value is not None:
                return None
        return ":".join([family, *parts])

    def registered_name(self, kind: Any) -> str | None:
        """The name of the backbone that a config's `type` means ("linescan.Vim" -> "Vim"), None if it is not one of this registry."""
        if not isinstance(kind, str):
            return next((name for name in self.names() if inspect.unwrap(self.get(name)) is kind), None)
        scope, name = self.split_scope_key(kind)
        return name if scope == self.scope and name in self.names() else None

    def module_of(self, backbone: str) -> str:
        """The module whose import registers it, for a backbone of this name."""
        return self._factory(backbone).__module__

    def archs(self, backbone: str) -> list[str]:
        """Names of the architectures that the backbone registered as `backbone` tells."""
        return list(self._told(backbone, "ARCHS"))

    def mixers(self, backbone: str) -> list[str]:
        """Names of the token mixers that its argument `mixer` takes; empty without such an argument, or if it does not tell."""
        return list(self._told(backbone, "MIXERS")) if "mixer" in self._arguments(backbone)[0] else []

    def transformers(self) -> list[str]:
        """Names `family:arch` of all registered plain transformers, family by family, each in the order in which it tells them."""
        return [f"{family}:{arch}" for family, name in self.families().items() for arch in getattr(self._factory(name), "TRANSFORMERS", ())]

    def is_transformer(self, config: Mapping[str, Any]) -> bool:
        """Whether a backbone's config is that of a registered transformer."""
        name = self.name_of(config)
        return name is not None and any(name == known or name.startswith((f"{known}_", f"{known}.")) for known in self.transformers())

    def mixer_of(self, config: Mapping[str, Any]) -> str | None:
        """The token mixer of all layers of a config whose backbone has exchangeable ones; None for other backbones, and for a mixture."""
        backbone = self.registered_name(config.get("type"))
        if backbone is None or not self.mixers(backbone) or config.get("pattern"):
            return None
        mixer = config.get("mixer", inspect.signature(self.get(backbone)).parameters["mixer"].default)
        return mixer.get("type") if isinstance(mixer, Mapping) else mixer

    def twin(self, config: Mapping[str, Any], mixer: str) -> dict[str, Any] | None:
        """The config of the same backbone with `mixer` in every layer, None if it has no such mixer. A `pattern` of mixers goes."""
        backbone = self.registered_name(config.get("type"))
        if backbone is None or mixer not in self.mixers(backbone):
            return None
        return {**{key: value for key, value in config.items() if key != "pattern"}, "mixer": mixer}

    def takes(self, backbone: str, argument: str) -> bool:
        """Whether the constructor names this argument; one that it would only pass on by ** to another package is not meant."""
        return argument in self._arguments(backbone)[0]

    def _factory(self, backbone: str) -> Any:
        """The class or function as it was registered, without the check around it."""
        return inspect.unwrap(self.get(backbone))

    def _told(self, backbone: str, attribute: str) -> Any:
        factory = self._factory(backbone)
        return getattr(factory, attribute, getattr(sys.modules.get(factory.__module__), attribute, ()))

    def _slots(self, backbone: str) -> list[str]:
        """The arguments that stand behind the family in a name."""
        named = [p for p in inspect.signature(self.get(backbone)).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        is_name = bool(named) and (named[0].default is inspect.Parameter.empty or isinstance(named[0].default, str))
        return [p.name for i, p in enumerate(named) if p.name == "mixer" or (i == 0 and is_name)]

    def _arguments(self, backbone: str) -> tuple[list[str], bool]:
        """Arguments that the constructor names, itself or in a base class that it passes them on to, and whether it takes any other."""
        factory = self._factory(backbone)
        steps = [c.__init__ for c in factory.__mro__ if "__init__" in vars(c)] if inspect.isclass(factory) else [factory]
        found: list[str] = []
        for step in steps:
            parameters = list(inspect.signature(step).parameters.values())
            found += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self"]
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                return found, False
        return found, True

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
