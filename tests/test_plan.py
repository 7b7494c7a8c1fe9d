"""Layer plans: seams, traces through chains of merges, and their form in a manifest."""

from __future__ import annotations

import json

from strata import methods, plan
from strata.plan import Layer, Plan, copy


def order(made: Plan) -> list[int]:
    return [layer.sources[0][1] for layer in made.layers]


def test_an_averaged_layer_has_a_seam_on_both_sides() -> None:
    average = Layer(((0, 0), (0, 1)), "linear", (0.5, 0.5))
    assert plan.seams(Plan((Layer(((0, 0),)), average, Layer(((0, 1),)), Layer(((0, 2),))))) == (0, 1)


def test_an_inserted_layer_has_a_seam_on_both_sides() -> None:
    assert plan.seams(methods.block_expansion(4, 2, 1, "even")) == (1, 2, 4)
    assert plan.inserted(methods.block_expansion(4, 2, 1, "even")) == (2, 5)


def test_averages_of_whole_models_follow_each_other() -> None:
    assert plan.seams(methods.blend([4, 4], "slerp", [0.5, 0.5])) == ()


def test_a_layer_of_another_parent_is_a_seam_even_at_the_next_height() -> None:
    assert plan.seams(Plan((copy(0, 0), copy(1, 1), copy(1, 2)))) == (0,)


def test_a_chain_of_merges_reads_as_one_plan_of_the_base() -> None:
    below = methods.dus(4, 1, 1)  # 0 1 2 1 2 3
    above = methods.dus(6, 4, 4)  # 0 1 4 5
    assert order(plan.trace(above, [below])) == [0, 1, 2, 3]
    assert plan.seams(plan.trace(above, [below])) == ()


def test_a_chain_through_averages_and_insertions_keeps_their_sources() -> None:
    average = Layer(((0, 0), (0, 2)), "linear", (0.25, 0.75))
    silent = Layer(((0, 1),), "zero")
    below = Plan((copy(0, 0), average, silent))
    above = Plan((copy(0, 1), copy(0, 2), Layer(((0, 1), (0, 0)), "linear", (0.5, 0.5))))
    told = plan.trace(above, [below]).layers
    assert told[:2] == (average, silent)
    assert told[2] == Layer(((0, 0), (0, 2), (0, 0)), "linear", (0.125, 0.375, 0.5))


def test_a_mix_over_an_inserted_copy_of_a_mix_has_a_weight_for_each_source() -> None:
    mixed = Plan((Layer(((0, 0), (0, 1)), "linear", (0.5, 0.5)), copy(0, 2)))
    silent = plan.trace(Plan((Layer(((0, 0),), "zero"), copy(0, 1))), [mixed])
    (told,) = plan.trace(Plan((Layer(((0, 0), (0, 1)), "linear", (0.5, 0.5)),)), [silent]).layers
    assert len(told.sources) == len(told.weights) == 3


def test_a_chain_over_two_parents_tells_their_bases() -> None:
    both = Plan((copy(0, 0), copy(1, 1)))
    one, other = plan.of(4, plan.identity(2)), plan.of(7, plan.copies([1, 0]))
    assert [layer.sources for layer in plan.trace(both, [one, other]).layers] == [((4, 0),), ((7, 0),)]


def test_json_round_trip() -> None:
    blended = methods.blend([2, 2], "slerp", [0.4, 0.6])
    named = Plan((Layer(((0, 1),), "linear", (1.0,), (("o_proj", (0.0,)),)),))
    for made in (methods.interlocked(6, 2, 2), methods.block_expansion(4, 2, 1, "top"), blended, named):
        assert Plan.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_a_copied_part_is_written_as_its_parent_alone() -> None:
    assert plan.identity(1).to_json() == {
        "layers": [["copy", [1.0], [[0, 0]]]], "embed_from": 0, "norm_from": 0, "head_from": 0,
    }  # fmt: skip


def test_weights_by_tensor_name_are_the_first_that_match() -> None:
    layer = Layer(((0, 1),), "linear", (1.0,), (("o_proj", (0.0,)), ("proj", (0.5,))))
    assert layer.weights_of("self_attn.o_proj.weight") == (0.0,)
    assert layer.weights_of("self_attn.q_proj.weight") == (0.5,)
    assert layer.weights_of("input_layernorm.weight") == (1.0,)
