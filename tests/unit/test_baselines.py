"""Arms are held against those that differ in what is selected, and in nothing that makes a target another one."""

import pytest

from s2l_ray.baselines import baselines
from tests.unit.tiny import SYNTHETIC, parse


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        ("{s2l: {}, one: {select.method: random}, two: {select.method: random}}", {"s2l": "one"}),
        ("{full: {select.method: full}, s2l: {}, more: {select.budget: 0.5}}", {"s2l": "full", "more": "full"}),
        ("{only: {select.method: random}}", {}),
        ("{only: {}}", {}),
        (
            "{half: {select.method: random, select.budget: 0.5}, s2l_half: {select.budget: 50%}, "
            "steps: {select.method: random, select.budget: 9, target.match: steps}, full: {select.method: full}, "
            "s2l_steps: {select.budget: 5, target.match: steps}, s2l_small: {select.budget: 9}}",
            {"s2l_half": "half", "full": "half", "s2l_steps": "steps", "s2l_small": "half"},
        ),
        # Another model, another way to be judged: no score says what selecting was worth.
        ("{random: {select.method: random}, s2l: {}, wide: {target.learning_rate: 0.5}}", {"s2l": "random"}),
        ("{random: {select.method: random}, asked: {evaluate.max_new_tokens: 9}}", {}),
        ("{random: {select.method: random}, cut: {tokens.max_tokens: 20}}", {}),
        # What is measured besides, seeds and the order of the rows do not matter.
        ("{random: {select.method: random}, s2l: {evaluate.metrics: [loss]}}", {"s2l": "random"}),
        (
            "{random: {select.method: random, target.seed: 3}, easy: {select.method: curriculum, target.order: rank}}",
            {"easy": "random"},
        ),
        (
            "{few: {select.method: random, examples.synthetic: {rows: 90}}, random: {select.method: random, "
            "select.budget: 0.5}, s2l: {}, s2l_few: {examples.synthetic: {rows: 90}, select.budget: 0.5}}",
            {"s2l": "random", "s2l_few": "few"},
        ),
    ],
)
def test_arm_is_held_against_the_random_one_that_is_most_like_it(arms, expected):
    assert baselines(parse(f"{SYNTHETIC}arms: {arms}\n").arms) == expected
