"""The audit of a model: parameters, buffers and packed weights, each counted once.

``surgery.inventory`` has been over the model; everything that is asked here (totals, rows,
roll-ups, addresses) is worked out from its notes when it is asked for.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, compress, count, repeat

from torch import nn

from surgery import tree
from surgery.errors import AddressError, ArgumentError
from surgery.inventory import Inventory, Kind, take_inventory
from surgery.shown import Shown
from surgery.tally import Cell, Counted, Counts, Key, Tally, add, cells_of, zeros

# How many names a sentence lists.
_NAMED = 8


@dataclass(frozen=True, slots=True)
class Row(Counted):
    """One module, with everything below it.

    A tensor counts in the module that holds it at its first address, and in those above.

    Attributes:
        address: the first address of the module.
        type: the name of its class.
        addresses: all its addresses.
        own: what it holds itself.
        cells: what it holds with everything below it.
        elsewhere: elements of the parameters that it uses but that count in another module,
            because their first address is there.
    """

    address: str
    type: str
    addresses: tuple[str, ...]
    own: Tally
    cells: tuple[Cell, ...]
    elsewhere: int

    @property
    def depth(self) -> int:
        """0 for the root, 1 for its children, and so on."""
        return self.address.count(".") + 1 if self.address else 0


@dataclass(frozen=True, slots=True)
class Shared:
    """One tensor with several addresses."""

    kind: Kind
    addresses: tuple[str, ...]
    elements: int


@dataclass(frozen=True, slots=True)
class SharedStorage:
    """Several tensors that are views of one storage: changing one may change another.

    Attributes:
        addresses: the first address of each.
        bytes: what they take together when each is counted, as the audit does.
    """

    addresses: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, repr=False)
class Audit(Shown, Counted):
    """Parameters, buffers and packed weights of a model, in all and by module.

    A value: it holds no tensor and no module, and does not change with the model.
    """

    inventory: Inventory

    def __repr__(self) -> str:
        return (
            f"Audit(total={self.total}, trainable={self.trainable}, frozen={self.frozen}, "
            f"buffers={self.buffers}, packed={self.packed}, bytes={self.bytes})"
        )

    @property
    def total(self) -> int:
        """Elements of all parameters, each parameter once."""
        return sum(self.inventory.elements[: self.inventory.counts[0]])

    @property
    def trainable(self) -> int:
        """Elements of the parameters that require a gradient."""
        return sum(compress(self.inventory.elements, self.inventory.trainable))

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """The count of the whole model."""
        keys, numbers = self._keys
        counts = [[0, 0, 0] for _ in keys]
        for number, elements in zip(numbers, self.inventory.elements, strict=True):
            counted = counts[number]
            counted[0] += 1
            counted[1] += elements
        for key, counted in zip(keys, counts, strict=True):
            counted[2] = counted[1] * key[3].itemsize
        for tensor, extra in self._extra_bytes.items():
            counts[numbers[tensor]][2] += extra
        return cells_of(dict(zip(keys, counts, strict=True)))

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Every module once, parents first, in the order of ``named_modules``."""
        inventory, parents = self.inventory, self._parents
        below: list[Counts] = [defaultdict(zeros) for _ in inventory.types]
        keys, numbers = self._keys
        extra = self._extra_bytes
        columns = zip(numbers, inventory.holders, inventory.elements, strict=True)
        for tensor, (number, module, elements) in enumerate(columns):
            key = keys[number]
            add(below[module][key], 1, elements, elements * key[3].itemsize + extra.get(tensor, 0))
        own = [Tally(cells_of(counts)) for counts in below]
        # Children come after their parents, so that backwards each is complete when it is added.
        for module in range(len(below) - 1, 0, -1):
            for key, counted in below[module].items():
                add(below[parents[module]][key], *counted)
        elsewhere = self._elsewhere()
        return tuple(
            Row(found[0], name, found, mine, cells_of(counts), elsewhere.get(module, 0))
            for module, (name, found, mine, counts) in enumerate(
                zip(inventory.types, self._addresses, own, below, strict=True)
            )
        )

    def at(self, address: str) -> Row:
        """The row of a module.

        Args:
            address: any of its addresses; ``""`` is the root.

        Returns:
            The module with everything below it.

        Raises:
            AddressError: there is no module.

        Example:
            >>> import torch, surgery
            >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
            >>> surgery.audit(model).at("0").total
            8
        """
        module = self._modules_by_address.get(address)
        if module is None:
            close = difflib.get_close_matches(address, self._modules_by_address, n=1)
            raise AddressError(
                "the audited model has no module at this address",
                where=address,
                fix=f"audit.at({close[0]!r})"
                if close
                else "[row.address for row in audit.rows] lists them",
            )
        return self.rows[module]

    def roll_up(self, depth: int) -> dict[str, Tally]:
        """Count by module, down to a depth; the tallies add up to the whole audit.

        Args:
            depth: modules at this depth count with everything below them, and those above it
                with what they hold themselves. 0 is the whole model in one.

        Returns:
            By first address, in the order of ``named_modules``.

        Raises:
            ArgumentError: the depth is negative or no integer.

        Example:
            >>> import torch, surgery
            >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
            >>> {name: tally.total for name, tally in surgery.audit(model).roll_up(1).items()}
            {'': 0, '0': 8, '1': 3}
        """
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 0:
            raise ArgumentError(
                "a depth is a number of levels below the root",
                where="depth",
                expected="an integer, 0 or more",
                found=repr(depth),
                fix="audit.roll_up(1)",
            )
        return {
            row.address: row.own if row.depth < depth else Tally(row.cells)
            for row in self.rows
            if row.depth <= depth
        }

    @cached_property
    def shared(self) -> tuple[Shared, ...]:
        """Every parameter, buffer and packed weight that has more than one address."""
        columns = zip(
            self.inventory.kinds, self._tensor_addresses, self.inventory.elements, strict=True
        )
        return tuple(Shared(*column) for column in columns if len(column[1]) > 1)

    @cached_property
    def shared_storage(self) -> tuple[SharedStorage, ...]:
        """Groups of different tensors that are views of one storage."""
        return tuple(
            SharedStorage(
                tuple(self._tensor_addresses[tensor][0] for tensor in group),
                sum(self._bytes_of(tensor) for tensor in group),
            )
            for group in self.inventory.storages
        )

    @property
    def blind_spots(self) -> tuple[str, ...]:
        """What is in the model and not in the count, in sentences."""
        spots = []
        if self.inventory.plain:
            spots.append(
                "plain tensors on modules are neither parameters nor buffers and are not "
                f"counted: {self._named(self.inventory.plain)}"
            )
        if self.inventory.unread:
            spots.append(
                "packed objects that show no tensors are not counted: "
                f"{self._named(self.inventory.unread)}"
            )
        return tuple(spots)

    @cached_property
    def _keys(self) -> tuple[tuple[Key, ...], tuple[int, ...]]:
        """What cells tell apart: every combination that occurs, and which one a tensor has."""
        inventory = self.inventory
        keys: list[Key] = []
        known: dict[tuple[object, ...], int] = {}
        column: list[int] = []
        transient = inventory.transient
        last: object = None
        number = 0
        trainable = chain(inventory.trainable, repeat(False))
        columns = zip(inventory.kinds, inventory.dtypes, inventory.devices, strict=True)
        for tensor, ((kind, dtype, device), learned) in enumerate(
            zip(columns, trainable, strict=False)
        ):
            # By id, since a device is slow to hash, and equal ones are one object here.
            here = (kind, learned, id(dtype), id(device), tensor in transient)
            if here != last:
                last = here
                number = known.setdefault(here, len(known))
                if number == len(keys):
                    keys.append((kind, learned, tensor not in transient, dtype, device))
            column.append(number)
        return tuple(keys), tuple(column)

    @cached_property
    def _extra_bytes(self) -> dict[int, int]:
        """Where a tensor does not take elements times item size: how much more it takes."""
        return {
            tensor: size - self.inventory.elements[tensor] * self.inventory.dtypes[tensor].itemsize
            for tensor, size in self.inventory.sizes
        }

    def _bytes_of(self, tensor: int) -> int:
        regular = self.inventory.elements[tensor] * self.inventory.dtypes[tensor].itemsize
        return regular + self._extra_bytes.get(tensor, 0)

    @cached_property
    def _parents(self) -> tuple[int, ...]:
        """The module above each one, on the way of its first address."""
        first: dict[int, int] = {}
        for parent, _, module in self.inventory.edges:
            first.setdefault(module, parent)
        return (-1, *(first[module] for module in range(1, len(self.inventory.types))))

    @cached_property
    def _visits(self) -> tuple[tuple[tuple[int, str], ...], ...]:
        """Every address of every module, each with its number in the walk."""
        below: list[list[tuple[str, int]]] = [[] for _ in self.inventory.types]
        for parent, name, module in self.inventory.edges:
            below[parent].append((name, module))
        found: list[list[tuple[int, str]]] = [[] for _ in self.inventory.types]
        stack: list[tuple[int, str, frozenset[int]]] = [(0, "", frozenset())]
        numbers = count()
        while stack:
            module, address, above = stack.pop()
            found[module].append((next(numbers), address))
            above |= {module}
            stack.extend(
                (child, tree.join(address, name), above)
                for name, child in reversed(below[module])
                if child not in above
            )
        return tuple(map(tuple, found))

    @cached_property
    def _addresses(self) -> tuple[tuple[str, ...], ...]:
        """Every address of every module, in the order of the walk."""
        return tuple(tuple(address for _, address in visits) for visits in self._visits)

    @cached_property
    def _modules_by_address(self) -> Mapping[str, int]:
        return {
            address: module for module, found in enumerate(self._addresses) for address in found
        }

    @cached_property
    def _tensor_addresses(self) -> tuple[tuple[str, ...], ...]:
        """Every address of every tensor, the first one first."""
        first = zip(self.inventory.holders, self.inventory.names, strict=True)
        places = [[place] for place in first]
        for tensor, module, name in self.inventory.aliases:
            places[tensor].append((module, name))
        return tuple(
            tuple(
                tree.join(address, name)
                for _, _, address, name in sorted(
                    (number, place, address, name)
                    for place, (module, name) in enumerate(found)
                    for number, address in self._visits[module]
                )
            )
            for found in places
        )

    def _named(self, places: Sequence[tuple[int, str]]) -> str:
        names = [tree.join(self._addresses[module][0], name) for module, name in places[:_NAMED]]
        more = len(places) - len(names)
        return ", ".join(names) + (f" and {more:,} more" if more else "")

    def _elsewhere(self) -> dict[int, int]:
        """By module, the parameters it reaches that count in another."""
        inventory = self.inventory
        if not inventory.aliases and len(inventory.edges) == len(inventory.types) - 1:
            return {}
        above: list[list[int]] = [[] for _ in inventory.types]
        for parent, _, module in inventory.edges:
            above[module].append(parent)
        homes = [{module} for module in inventory.holders]
        for tensor, module, _ in inventory.aliases:
            homes[tensor].add(module)
        elsewhere: dict[int, int] = defaultdict(int)
        for tensor in range(inventory.counts[0]):
            counted = set()
            here = inventory.holders[tensor]
            while here >= 0:
                counted.add(here)
                here = self._parents[here]
            for user in _all_above(homes[tensor], above) - counted:
                elsewhere[user] += inventory.elements[tensor]
        return elsewhere


def _all_above(modules: set[int], above: list[list[int]]) -> set[int]:
    found = set(modules)
    stack = list(modules)
    while stack:
        for parent in above[stack.pop()]:
            if parent not in found:
                found.add(parent)
                stack.append(parent)
    return found


def audit(model: nn.Module) -> Audit:
    """Count the parameters, buffers and packed weights of a model, each once.

    Nothing is computed and no weight is read (packed weights of quantised modules are unpacked
    to learn their shapes). ``audit(model).total`` is always
    ``sum(p.numel() for p in model.parameters())``: pruned weights count in full, a
    parametrized layer counts its original parameters, a sparse parameter counts its shape.

    Args:
        model: any module, on any device (``meta`` too). ``torch.compile``, ``DataParallel``,
            ``DistributedDataParallel`` and FSDP wrappers are read through; inside FSDP the
            elements are those of the parameters as this process sees them.

    Returns:
        The audit: totals, ``rows`` by module, ``roll_up(depth)``, ``shared``,
        ``shared_storage``. It prints as a table and holds no tensor.

    Raises:
        UnsupportedModelError: the model is no module, lazy, scripted or exported.

    Example:
        >>> import torch, surgery
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        >>> _ = model[0].requires_grad_(False)
        >>> found = surgery.audit(model)
        >>> found.total, found.trainable, found.buffers, found.bytes
        (12, 4, 5, 72)
        >>> found.at("0").frozen
        8
    """
    return Audit(take_inventory(model))
