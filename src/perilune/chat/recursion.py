"""Which references of a schema can never come to an end: no finite JSON fits what they refer to.

Each part of the schema needs some of its parts to have an end: an object all that it requires, an array what
it must hold, a choice one of its variants, a reference its target. From those that need nothing it spreads
upwards what has an end; each need is looked at once, however the references are tied together.
"""

from __future__ import annotations

from typing import Any, TypeAlias

Schema: TypeAlias = dict[str, Any]
Path: TypeAlias = tuple[str, ...]


def endless_references(root: Schema) -> list[tuple[Schema, Path]]:
    """The schemas whose `$ref` has no end, where that leaves the whole schema without any; else none."""
    return _Needs(root).endless()


def referred(root: Schema, reference: str) -> Schema | None:
    """What `#` or `#/$defs/...` refers to."""
    target: Any = root
    for name in reference.split("/")[1:]:
        target = target.get(name) if isinstance(target, dict) else None
    return target if isinstance(target, dict) else None


class _Needs:
    def __init__(self, root: Schema) -> None:
        self._root = root
        self._schemas: list[tuple[Schema, Path]] = [(root, ())]
        self._place = {id(root): 0}
        self._open: list[int] = []
        """How many needs of a schema are not met yet."""
        self._needed_by: list[list[int]] = [[]]
        at = 0
        while at < len(self._schemas):
            self._add(at)
            at += 1

    def endless(self) -> list[tuple[Schema, Path]]:
        ended = [at for at, needs in enumerate(self._open) if not needs]
        for at in ended:
            for above in self._needed_by[at]:
                self._open[above] -= 1
                if self._open[above] == 0:
                    ended.append(above)
        if self._open[0] <= 0:
            return []
        return [found for at, found in enumerate(self._schemas) if self._open[at] > 0 and "$ref" in found[0]]

    def _add(self, at: int) -> None:
        schema, path = self._schemas[at]
        if isinstance(choices := schema.get("anyOf"), list) and choices:
            variants = [self._known(one, (*path, "anyOf")) for one in choices if isinstance(one, dict)]
            self._open.append(1)
            for variant in variants:
                self._needed_by[variant].append(at)
            return
        needs = self._needs(schema, path)
        self._open.append(len(needs))
        for need in needs:
            self._needed_by[need].append(at)

    def _needs(self, schema: Schema, path: Path) -> list[int]:
        if "$ref" in schema:
            target = referred(self._root, reference := str(schema["$ref"]))
            return [] if target is None else [self._known(target, tuple(reference.split("/")[1:]))]
        kinds = schema.get("type")
        listed = {kinds} if isinstance(kinds, str) else set(kinds or ())
        if listed - {"object", "array"}:
            return []
        needs = []
        properties = schema.get("properties")
        if isinstance(properties, dict) and "array" not in listed:
            for name in dict.fromkeys(schema.get("required") or ()):
                if isinstance(part := properties.get(name), dict):
                    needs.append(self._known(part, (*path, "properties", name)))
        least = schema.get("minItems")
        if isinstance(least, int) and least > 0 and isinstance(part := schema.get("items"), dict):
            needs.append(self._known(part, (*path, "items")))
        return needs

    def _known(self, schema: Schema, path: Path) -> int:
        if id(schema) not in self._place:
            self._place[id(schema)] = len(self._schemas)
            self._schemas.append((schema, path))
            self._needed_by.append([])
        return self._place[id(schema)]
