"""Plans that begin alike share what begins alike: each step once, in little memory, and the same states as alone."""

from __future__ import annotations

from itertools import product
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from strata.screen.walk import Order, common, steps, walk

ORDERS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=7).map(tuple), max_size=12, unique=True)


def visited(orders: list[Order]) -> tuple[dict[Order, Order], int]:
    """What a state is, where a state is the layers that it has gone through, and how many steps were made."""
    found: dict[Order, Order] = {}
    made = 0

    def layer(number: int, state: Order) -> Order:
        nonlocal made
        made += 1
        return (*state, number)

    walk(orders, (), layer, lambda order, state: found.update({order: state}))
    return found, made


def prefixes(orders: list[Order]) -> set[Order]:
    return {order[:length] for order in orders for length in range(1, len(order) + 1)}


@given(ORDERS)
def test_every_order_ends_in_its_own_state_and_each_beginning_is_computed_once(orders: list[Order]) -> None:
    found, made = visited(orders)
    assert found == {order: order for order in orders}
    assert made == steps(orders) == len(prefixes(orders))


def test_an_order_that_begins_another_is_visited_too() -> None:
    found, made = visited([(0, 1), (0, 1, 2), (0,)])
    assert (len(found), made) == (3, 3)


def test_what_is_common_is_told_of_the_order_before() -> None:
    assert common([(0, 1, 2), (0, 1, 3), (0, 2), (1,)]) == [0, 2, 1, 0]


def test_no_more_states_are_held_than_an_order_is_deep() -> None:
    """Each later order goes on from one beginning; what is behind it is not needed any more."""
    alive = 0
    most = 0

    class State:
        def __init__(self) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    orders = list(product(range(3), repeat=6))
    Random(1).shuffle(orders)
    walk(orders, State(), lambda number, state: State(), lambda order, state: None)
    assert most <= 6 + 2
    assert steps(orders) == 3 + 9 + 27 + 81 + 243 + 729
