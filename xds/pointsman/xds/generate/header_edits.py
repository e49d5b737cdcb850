"""Header edits of a rule and of its arms as one, in the order of Gateway API.

A backendRef's filters follow those of its rule. Envoy does it the other way round, whatever
`most_specific_header_mutations_wins` says: it applies an arm's edits and then the route's. So edits that touch the same
header are put together here and given to the arms.
"""

from __future__ import annotations

from collections.abc import Iterable

from pointsman.core.model import HeaderEdit


def names(edit: HeaderEdit) -> frozenset[str]:
    """The headers that an edit touches."""
    return frozenset([*(name for name, _ in (*edit.set, *edit.add)), *edit.remove])


def collide(rule: HeaderEdit, arms: Iterable[HeaderEdit]) -> bool:
    """Whether an arm touches a header that the rule touches."""
    return any(names(rule) & names(arm) for arm in arms)


def then(first: HeaderEdit, second: HeaderEdit) -> HeaderEdit:
    """One edit that does what the two do one after the other. Envoy removes before it sets, and sets before it adds."""
    replaced = {*(name for name, _ in second.set), *second.remove}
    return HeaderEdit(
        set=(*(entry for entry in first.set if entry[0] not in replaced), *second.set),
        add=(*(entry for entry in first.add if entry[0] not in replaced), *second.add),
        remove=tuple(dict.fromkeys((*first.remove, *second.remove))),
    )
