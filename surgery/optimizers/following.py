"""Let an optimizer follow an operation: training goes on as if nothing had happened."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from surgery import tree
from surgery.errors import ArgumentError
from surgery.operations.journal import Journal
from surgery.operations.plan import Outcome
from surgery.operations.undoing import Operated
from surgery.optimizers import memory as memories
from surgery.optimizers.averages import copies_of, follow_on
from surgery.optimizers.checks import (
    check_group,
    check_groups,
    check_optimizer,
    check_order,
    check_outcome,
    is_undone,
    later_ones,
)
from surgery.optimizers.exchange import Come, Exchange, exchange_of
from surgery.optimizers.followed import Followed, Moved, StateNow
from surgery.optimizers.keepers import Keepers, State, States
from surgery.optimizers.memory import Memory
from surgery.optimizers.places import Lists, Placing, placed
from surgery.optimizers.state import Carry, carry, carry_gradient, step_of
from surgery.optimizers.zero import goes_by_others, is_kept_alike, made_ahead, zero_of

# Optimizers whose step takes a whole matrix at once, whatever the shape of their state.
_WHOLE = ("Muon", "Shampoo")
# By what they note which parameters they leave to another rule.
_APART = "use_muon"
_SHOWN = 4


def follow(
    optimizer: Optimizer,
    outcome: Outcome,
    *,
    averages: object = (),
    group: int | None = None,
) -> Followed:
    """Let an optimizer follow an operation on its model, so that training goes on.

    New parameters take the places of those they replace, in the same groups; what the model has no
    longer leaves. The state of every other parameter stays as it is, the same objects. Where
    entries live on (classes that ``keep`` names, channels of an adapted input), so does their
    state, entry by entry; new entries start from what the optimizer starts from, and share the
    step count of the tensor. Where nothing lives on, or the state is not made entry by entry, the
    parameter starts anew. The same operation is done to averaged copies.

    Call it right after each operation, in turn, and again after ``outcome.undo()``: then what the
    operation concerned is as it was when it was followed. Gradients that are being accumulated go
    along with entries that live on one for one. Learning-rate schedulers and a ``GradScaler`` know
    the optimizer and its groups, which stay the same objects. Either all of it happens or nothing.
    Of several optimizers on one model, let each follow. What an operation unfroze is left to
    ``group``.

    Args:
        optimizer: the optimizer; it is changed in place, and so are those that it steps through.
        outcome: what the verb returned.
        averages: averaged copies of the model, one or several: an ``AveragedModel``, an object
            that keeps its copy as ``module`` or ``ema``, or the copy itself. Needed once: undoing
            finds them.
        group: the number of the group for parameters that nothing else says the group of, for
            instance a head whose predecessor was frozen and in no group, or what was unfrozen and
            is in no group yet; also for a head that was attached, instead of the group of what is
            in front of it. Left out, such parameters are not trained, and the notes say so.

    Returns:
        What became of every parameter, and notes. ``print`` shows them.

    Raises:
        ArgumentError: no optimizer, or one of another model, or one whose state belongs to no
            single parameter; a parameter in two groups; no such group; a dry run, a copy of an
            outcome, one that was committed or followed already, or an earlier one that was not;
            averages of another model.
        UndoError: an operation was undone that the optimizer has yet to follow back.

    Example:
        >>> import torch, surgery
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> model(torch.ones(1, 8)).sum().backward()
        >>> optimizer.step()
        >>> outcome = surgery.replace_head(model, 7, keep="all", heads="2")
        >>> for moved in surgery.follow(optimizer, outcome).moved:
        ...     print(moved)
        2.weight (group 0) replaced, state carried, 5 of 7 entries, at step 1
        2.bias (group 0) replaced, state carried, 5 of 7 entries, at step 1
        >>> optimizer.param_groups[0]["params"][2] is model[2].weight
        True
    """
    keepers = check_optimizer(optimizer)
    optimizer = keepers.optimizer
    operated = check_outcome(optimizer, outcome)
    now = Lists.of(optimizer)
    check_groups(now)
    check_group(group, len(now.tensors))
    known = memories.averages_of_others(optimizer, operated)
    copies = [each for each in copies_of(averages) if id(each) not in known]
    back = is_undone(operated)
    remembered = memories.memory_of(optimizer, operated)
    meant = _meant(outcome, now, remembered, back)
    model = remembered.model() if remembered is not None else None
    index = tree.index(meant.model if model is None else model)
    if remembered is not None:
        exchange = remembered.exchange
    else:
        exchange = exchange_of(meant).without_unfrozen(None if back else now.where())
    exchange = exchange.back() if back else _really(exchange, index)
    check_order(
        optimizer, operated, now.where().keys() - index.tensors.keys() - exchange.gone.keys()
    )
    _check_concerned(now, exchange, index, meant)
    taken = memories.held_by_others(optimizer, operated)
    placing = placed(now, exchange, index, group, partial(_fits, optimizer), taken)
    if remembered is not None and now.same(remembered.after):
        placing.lists = remembered.before
    following = _Following(keepers, operated, meant, index, now, exchange, placing)
    # State that is made here is written to at the next step.
    with torch.inference_mode(False):
        return following.go_back(remembered) if back else following.go(copies)


def _fits(optimizer: Optimizer, number: int, new: torch.Tensor, old: torch.Tensor) -> bool:
    """Whether an optimizer that steps the one can step the other: some take matrices alone."""
    if new.dim() == old.dim():
        return True
    group = optimizer.param_groups[number]
    return zero_of(optimizer, group, new).found or not zero_of(optimizer, group, old).found


def _meant(outcome: Outcome, now: Lists, remembered: Memory | None, back: bool) -> Outcome:
    """The outcome on the optimizer's model: an operation may have changed a second one."""
    if back or remembered is not None or outcome.operated is None:
        return outcome
    where = now.where()
    for each in (outcome, *outcome.operated.also):
        own = tree.index(each.model).tensors.keys() - {id(tensor) for tensor in each.new.values()}
        held = own | {id(tensor) for tensor in each.old.values()}
        if not held.isdisjoint(where):
            return each
    return outcome


def _really(exchange: Exchange, index: tree.Index) -> Exchange:
    """Less what the model still holds elsewhere: a tie that ended."""
    gone = {k: each for k, each in exchange.gone.items() if k not in index.tensors}
    return replace(exchange, gone=gone)


def _check_concerned(now: Lists, exchange: Exchange, index: tree.Index, outcome: Outcome) -> None:
    where = now.where()
    known = {*exchange.gone, *exchange.come, *exchange.refilled, *index.tensors}
    if where and where.keys().isdisjoint(known):
        raise ArgumentError(
            "this optimizer holds no parameter of the model that was operated on",
            where=outcome.plan.title,
            expected=f"an optimizer over parameters of the {type(outcome.model).__name__}",
            found=f"{len(where)} parameters of something else",
            fix="surgery.follow(optimizer, outcome) with the optimizer that trains this model",
        )


@dataclass(eq=False)
class _Following:
    """Everything is known, and nothing touched yet."""

    keepers: Keepers
    operated: Operated
    outcome: Outcome
    index: tree.Index
    now: Lists
    exchange: Exchange
    placing: Placing
    # Sorts of parameters whose state is made at their first step.
    at_first_step: set[tuple[object, ...]] = field(default_factory=set)

    @property
    def optimizer(self) -> Optimizer:
        """The one whose groups count."""
        return self.keepers.optimizer

    def go(self, copies: list[nn.Module]) -> Followed:
        """Follow an operation."""
        states: dict[int, States] = {}
        moved = list(self._moved(states))
        gradients = list(self._gradients())
        concerned = self._concerned()
        before = [(each, self.keepers.states(each)) for each in concerned]
        title = self.outcome.plan.title
        done = follow_on(self.outcome, copies)
        model = weakref.ref(self.outcome.model)
        lists = self.placing.lists
        memory = Memory(title, self.now, lists, before, self.exchange, model, done)
        try:
            self._change({id(each): each for each in concerned}, states)
            memories.remember(self.optimizer, self.operated, memory)
            for tensor, gradient in gradients:
                tensor.grad = gradient
        except BaseException:
            if done:
                done[0].undo()
            raise
        return self._followed(moved, done, undone=False)

    def _gradients(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """What was accumulated before, for the parameters that go on with it."""
        after = self.placing.lists.where()
        for key, come in self.exchange.come.items():
            if key in after and come.before is not None and come.carried is not None:
                gradient = carry_gradient(come.before, come.tensor, come.carried)
                if gradient is not None:
                    yield come.tensor, gradient

    def go_back(self, memory: Memory | None) -> Followed:
        """Follow an operation that was undone."""
        before = [] if memory is None else memory.states
        states = {id(tensor): state for tensor, state in before}
        tensors = {id(tensor): tensor for tensor, _ in before}
        tensors |= {key: each.tensor for key, each in self.exchange.gone.items()}
        moved = list(self._moved_back(states))
        if memory is None:
            held, after = self.now.where(), self.placing.lists.where()
            come = {k: c.tensor for k, c in self.exchange.come.items() if k not in held}
            states = {k: self._ahead(after.get(k), tensor) for k, tensor in come.items()}
            tensors |= come
        if memory is not None and memory.averages:
            first = memory.averages[0]
            if first.operated is not None and not first.operated.over:
                first.undo()
        self._change(tensors, states)
        memories.forget(self.optimizer, self.operated)
        return self._followed(moved, (), undone=True)

    def _concerned(self) -> list[torch.Tensor]:
        """Every parameter whose state may become another."""
        where = self.now.where()
        gone = [each.tensor for key, each in self.exchange.gone.items() if key in where]
        come = [each.tensor for each in self.exchange.come.values()]
        return [*gone, *come, *(tensor for tensor, _ in self.exchange.refilled.values())]

    def _change(self, tensors: dict[int, torch.Tensor], states: dict[int, States]) -> None:
        """Give the groups their lists, and parameters their states; all or nothing."""
        journal = Journal()
        try:
            self.keepers.remember(journal)
            for group in self.optimizer.param_groups:
                journal.remember(group["params"])
                if self.now.names:
                    journal.remember(group["param_names"])
            self.placing.lists.put(self.optimizer)
            for key, tensor in tensors.items():
                self.keepers.put(tensor, states.get(key, ()))
        except BaseException:
            journal.take_back()
            raise

    def _moved(self, states: dict[int, States]) -> Iterator[Moved]:
        """What becomes of each parameter; fills in the states that are carried."""
        where = self.now.where()
        taken = {id(come.before) for come in self.exchange.come.values()}
        for key, come in self.exchange.come.items():
            if key in where:
                # It was in there before, under another address or of another model.
                states[key] = self.keepers.states(come.tensor)
            elif self.placing.groups[key] is None:
                yield Moved(come.address, None, "left out", "none", reason=self._why(key))
            else:
                found = self._carry(come)
                ahead = self._ahead(self.placing.groups[key], come.tensor)
                carried = (each.state for each in found)
                states[key] = tuple(a or b for a, b in zip(carried, ahead, strict=True))
                yield self._arrived(key, come, found)
        for key, gone in self.exchange.gone.items():
            if key in where and key not in taken:
                state: StateNow = "gone" if self.keepers.has(gone.tensor) else "none"
                yield Moved(gone.address, None, "removed", state)
        for key, (tensor, address) in self.exchange.refilled.items():
            if key in where:
                had = self.keepers.has(tensor)
                states[key] = self._ahead(where[key], tensor)
                reason = "its values are others now" if had else ""
                begins: StateNow = "starts anew" if had else "none"
                yield Moved(address, where[key], "refilled", begins, reason=reason)

    def _arrived(self, key: int, come: Come, found: list[Carry]) -> Moved:
        had = come.before is not None and self.keepers.has(come.before)
        replaced = come.before is not None and id(come.before) in self.exchange.gone
        carried = next((each for each in found if each.state is not None), None)
        reasons = dict.fromkeys(each.reason for each in found)
        return Moved(
            come.address,
            self.placing.groups[key],
            "replaced" if replaced else "added",
            "carried" if carried is not None else "starts anew" if had else "none",
            None if carried is None else carried.step,
            None if carried is None else carried.entries,
            "; ".join(filter(None, (*reasons, self._why(key)))),
        )

    def _ahead(self, number: int | None, tensor: torch.Tensor) -> States:
        """What each keeper has to have of a parameter before it steps it for the first time."""
        if number is None:
            return tuple(None for _ in self.keepers)
        return tuple(self._made_ahead(each, number, tensor) for each in self.keepers)

    def _made_ahead(self, keeper: Optimizer, number: int, tensor: torch.Tensor) -> State | None:
        if keeper in self.keepers.around:
            return None
        group: dict[str, Any] = self.optimizer.param_groups[number]
        sort = (id(keeper), number, tensor.dim(), tensor.dtype, tensor.device)
        if sort in self.at_first_step or all(group is not each for each in keeper.param_groups):
            return None
        found = made_ahead(keeper, group, tensor)
        if found is None:
            self.at_first_step.add(sort)
        return found

    def _why(self, key: int) -> str:
        return self.placing.reasons.get(key, "")

    def _carry(self, come: Come) -> list[Carry]:
        """What each keeper carries over."""
        before = come.before
        if before is None or not self.keepers.has(before):
            return [Carry(None) for _ in self.keepers]
        number = self.now.where()[id(before)]
        group: dict[str, Any] = self.optimizer.param_groups[number]
        states = self.keepers.states(before)
        return [
            self._carried_by(keeper, group, come, before, state) if state else Carry(None)
            for keeper, state in zip(self.keepers, states, strict=True)
        ]

    def _carried_by(
        self,
        keeper: Optimizer,
        group: dict[str, Any],
        come: Come,
        before: torch.Tensor,
        state: State,
    ) -> Carry:
        if come.carried is None:
            return Carry(None, reason="nothing of the old one lives on in it")
        if keeper in self.keepers.around:
            return Carry(None, reason=f"what {type(keeper).__name__} keeps of it starts anew")
        whole = next((c for c in type(keeper).__mro__ if c.__name__.endswith(_WHOLE)), None)
        # Vectors, and matrices that are told apart, it steps as others do.
        if whole is not None and before.dim() > 1 and _flag(state, group) is not False:
            return Carry(None, reason=f"{whole.__name__} steps a matrix as a whole")
        if not is_kept_alike(keeper, group, before, come.tensor):
            return Carry(None, reason=f"{type(keeper).__name__} keeps other state of its new size")
        found = carry(state, before, come.tensor, come.carried, zero_of(keeper, group, before))
        if found.state is None or not goes_by_others(keeper, group, before, come.carried.axis):
            return found
        said = "steps go by the whole tensor, which is another now"
        return replace(found, reason="; ".join(filter(None, (found.reason, said))))

    def _moved_back(self, states: dict[int, States]) -> Iterator[Moved]:
        where = self.now.where()
        after = self.placing.lists.where()
        for key, come in self.exchange.come.items():
            state = states.get(key, ())
            if key in after and key not in where:
                taken = come.before is not None and id(come.before) in where
                yield Moved(
                    come.address,
                    after[key],
                    "replaced" if taken else "added",
                    "restored" if any(state) else "none",
                    _step(state),
                )
        taken_from = {id(come.before) for come in self.exchange.come.values()}
        for key, gone in self.exchange.gone.items():
            if key in where and key not in taken_from and key not in after:
                yield Moved(gone.address, None, "removed", "gone")
        for key, (_, address) in self.exchange.refilled.items():
            if key in where:
                state = states.get(key, ())
                now: StateNow = "restored" if any(state) else "none"
                yield Moved(address, where[key], "refilled", now, _step(state))

    def _followed(self, moved: list[Moved], done: tuple[Outcome, ...], *, undone: bool) -> Followed:
        before, after = self.now.where(), self.placing.lists.where()
        untouched = (before.keys() & after.keys()) - self.exchange.refilled.keys()
        return Followed(
            self.outcome.plan.title,
            type(self.optimizer).__name__,
            undone,
            tuple(moved),
            len(untouched),
            done,
            tuple(self._notes(moved, after)),
        )

    def _notes(self, moved: list[Moved], after: dict[int, int]) -> Iterator[str]:
        if not moved:
            yield "nothing in the optimizer had to change"
        entries = list(self.index.of_kind("parameter"))
        later = later_ones(self.optimizer, self.operated, after)
        yield from (f"{title} was done since, and is to be followed next" for title in later)
        outside = [
            entry.address
            for entry in entries
            if entry.tensor.requires_grad and id(entry.tensor) not in after and not later
        ]
        if outside:
            here = ", or group= here" if any(each.what == "left out" for each in moved) else ""
            yield (
                f"trainable and in no group, so not trained by it: {_listed(outside)}; "
                f"optimizer.add_param_group{here}"
            )
        stale = [
            entry.address
            for entry in entries
            if not entry.tensor.requires_grad
            and entry.tensor.grad is not None
            and id(entry.tensor) in after
        ]
        if stale:
            yield (
                f"frozen, and a step would still move them by the gradient they hold: "
                f"{_listed(stale)}; optimizer.zero_grad() first"
            )
        held = {id(entry.tensor) for entry in entries}
        strange = after.keys() - held
        if strange and held & after.keys() and not later:
            yield (
                f"{len(strange)} parameters of the optimizer are not in this model, and stay: they "
                "are of another, or of an operation before this one that was not followed"
            )
        for number, tensors in enumerate(self.placing.lists.tensors):
            if not tensors and self.now.tensors[number]:
                yield f"group {number} is empty now, and stays for schedulers that count groups"
        if moved and any(group.get("capturable") for group in self.optimizer.param_groups):
            yield "a CUDA graph that was captured before knows the old parameters: capture it again"


def _flag(state: State, group: dict[str, Any]) -> object:
    """What the state, else the group, says of whether the parameter is stepped as a whole."""
    return state.get(_APART, group.get(_APART))


def _step(states: States) -> float | None:
    """The step count in the states of a parameter, where one has it."""
    return next((step for state in states if (step := step_of(state or {})) is not None), None)


def _listed(addresses: list[str]) -> str:
    more = f" and {len(addresses) - _SHOWN} more" if len(addresses) > _SHOWN else ""
    return ", ".join(addresses[:_SHOWN]) + more
