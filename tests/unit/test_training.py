"""Training: what a step is made of depends on its number alone, and the loop goes on where it stopped."""

import math
from dataclasses import astuple, replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ray.errors import ConfigError, DataError
from s2l_ray.training import (
    BatchOrder,
    Plan,
    Position,
    Schedule,
    Share,
    checkpoint_steps,
    matched_rows,
    pauses,
    steps_for,
    train_loop,
)
from tests.unit import tiny

# Schedule


@pytest.mark.parametrize(("total", "warmup"), [(100, 0.1), (7, 0.5), (1, 0.03), (10, 0.0), (2, 0.97)])
def test_schedule_is_transformers_cosine_one_step_earlier(total, warmup):
    """transformers starts at rate 0, which wastes the first step; ours is its schedule without that step's warm-up."""
    import torch
    from transformers import get_cosine_schedule_with_warmup

    schedule = Schedule(total, 0.2, warmup)
    warmup_steps = math.ceil(warmup * total)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    reference = get_cosine_schedule_with_warmup(optimizer, warmup_steps, total)
    theirs = []
    for _ in range(total + 1):
        theirs.append(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()
    for step in range(1, total + 2):
        expected = theirs[step] if step <= warmup_steps else theirs[step - 1]
        assert schedule.learning_rate(step) == pytest.approx(expected, abs=1e-12)


def test_schedule_rises_to_the_peak_and_falls_without_reaching_zero():
    rates = [Schedule(50, 1.0, 0.2).learning_rate(step) for step in range(1, 51)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[9] == rates[10] == 1.0
    assert (np.diff(rates[10:]) < 0).all()
    assert 0 < rates[-1] < 0.01
    assert Schedule(50, 1.0, 0.2).learning_rate(51) == pytest.approx(0, abs=1e-12)


@given(total=st.integers(1, 300), warmup=st.floats(0, 0.99))
def test_schedule_is_positive_and_never_above_the_peak(total, warmup):
    rates = [Schedule(total, 0.5, warmup).learning_rate(step) for step in range(1, total + 1)]
    assert all(0 < rate <= 0.5 for rate in rates)
    assert max(rates) == 0.5


# Checkpoints and steps


def test_checkpoint_steps_a_number_is_spread_evenly():
    assert checkpoint_steps(100, 4) == (25, 50, 75, 100)
    assert checkpoint_steps(10, 3) == (3, 7, 10)


@given(total=st.integers(1, 500), wanted=st.integers(1, 50))
def test_checkpoint_steps_are_distinct_end_at_the_last_and_are_even(total, wanted):
    steps = checkpoint_steps(total, wanted)
    assert len(steps) == len(set(steps)) == min(total, wanted)
    assert steps[-1] == total
    gaps = np.diff([0, *steps])
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1


def test_checkpoint_steps_a_list_is_taken_and_may_not_go_beyond():
    assert checkpoint_steps(10, (1, 4, 10)) == (1, 4, 10)
    with pytest.raises(ConfigError, match="11"):
        checkpoint_steps(10, (1, 11))


def test_steps_for_counts_the_last_partial_batch():
    assert steps_for(100, 3, 30) == 10
    assert steps_for(101, 3, 30) == 11
    assert steps_for(3, 0.1, 128) == 1


@given(n=st.integers(1, 5000), tenths=st.integers(1, 50), batch=st.integers(1, 64))
def test_steps_for_is_exact_where_floats_are_not(n, tenths, batch):
    exact = math.ceil(Fraction(n * tenths, 10 * batch))
    assert steps_for(n, tenths / 10, batch) == exact
    rows = matched("epochs", epochs=tenths / 10, n_rows=n, batch=batch)
    assert rows == math.ceil(Fraction(n * tenths, 10))
    # So that no step is empty.
    assert math.ceil(rows / batch) == exact


# Batches


def sequence(order, steps):
    return np.concatenate([order.global_batch(step) for step in steps])


@given(n=st.integers(1, 40), batch=st.integers(1, 50), epochs=st.integers(1, 4), seed=st.integers(0, 2**63 - 1))
@settings(deadline=None)
def test_batch_order_every_epoch_is_a_permutation(n, batch, epochs, seed):
    order = BatchOrder(n, batch, n * epochs, seed)
    steps = steps_for(n, epochs, batch)
    batches = [order.global_batch(step) for step in range(1, steps + 1)]
    assert [len(b) for b in batches[:-1]] == [batch] * (steps - 1)
    assert 1 <= len(batches[-1]) <= batch
    seen = np.concatenate(batches).reshape(epochs, n)
    assert (np.sort(seen, axis=1) == np.arange(n)).all()
    assert len(order.global_batch(steps + 1)) == 0


def test_batch_order_epochs_and_seeds_differ():
    order = BatchOrder(100, 100, 300, 1)
    first, second = order.global_batch(1), order.global_batch(2)
    assert (first != second).any()
    assert (first != replace(order, seed=2).global_batch(1)).any()


def test_batch_order_a_batch_crosses_the_border_of_epochs():
    order = BatchOrder(10, 4, 30, 0)
    crossing = order.global_batch(3)
    whole = sequence(order, range(1, 9))
    assert len(crossing) == 4
    assert crossing.tolist() == whole[8:12].tolist()
    assert len(sequence(order, [8])) == 2


def test_batch_order_in_order_runs_through_the_rows():
    order = BatchOrder(5, 3, 10, 9, in_order=True)
    assert sequence(order, range(1, 5)).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]


def test_batch_order_is_the_same_for_any_way_of_asking():
    order = BatchOrder(10, 4, 30, 0)
    forward = {step: order.global_batch(step).tolist() for step in range(1, 9)}
    fresh = BatchOrder(10, 4, 30, 0)
    for step in (8, 3, 1, 3, 5, 2, 8):
        BatchOrder(7, 2, 14, step).global_batch(1)
        assert fresh.global_batch(step).tolist() == forward[step]


def test_batch_order_cut_otherwise_shows_the_same_rows_in_the_same_order():
    by_four, by_seven = BatchOrder(10, 4, 28, 3), BatchOrder(10, 7, 28, 3)
    assert sequence(by_four, range(1, 8)).tolist() == sequence(by_seven, range(1, 5)).tolist()


@given(n=st.integers(0, 60), batch=st.integers(1, 60), world=st.integers(1, 9), micro=st.integers(1, 20))
def test_share_partitions_the_global_batch_for_any_world(n, batch, world, micro):
    positions = np.arange(100, 100 + min(n, batch))
    cuts = [Share(rank, world, micro, batch).cut(positions) for rank in range(world)]
    counts = {len(cut) for cut in cuts}
    assert counts == {Share(0, world, micro, batch).micro_batches}
    assert max(len(part) for cut in cuts for part in cut) <= micro
    assert sorted(int(p) for cut in cuts for part in cut for p in part) == positions.tolist()
    own = [sum(len(part) for part in cut) for cut in cuts]
    assert max(own) - min(own) <= 1


# What arms have in common


def matched(match, **changes):
    sizes = {"n_rows": 100, "n_full": 1000, "tokens": 500, "tokens_full": 8000}
    return matched_rows(match, **{"epochs": 3, "steps": None, "batch": 10, **sizes, **changes})


def test_matched_rows_epochs_are_passes_over_the_own_rows():
    assert matched("epochs") == 300
    assert matched("epochs", epochs=0.5) == 50


def test_matched_rows_steps_are_those_of_full():
    assert matched("steps") == steps_for(1000, 3, 10) * 10 == 3000
    assert steps_for(matched("steps", n_full=1001), 1, 10) == steps_for(1001, 3, 10)


def test_matched_rows_tokens_are_those_of_full_in_expectation():
    # 3 * 8000 tokens in rows of 5 tokens.
    assert matched("tokens") == 4800


@given(n=st.integers(1, 3000), tokens=st.integers(1, 10**6), epochs=st.sampled_from([1, 3, 0.7]))
def test_matched_rows_full_against_itself_is_its_epochs(n, tokens, epochs):
    same = {"n_rows": n, "n_full": n, "tokens": tokens, "tokens_full": tokens, "epochs": epochs}
    assert matched("tokens", **same) == matched("epochs", **same)


@pytest.mark.parametrize("match", ["epochs", "steps", "tokens"])
def test_matched_rows_explicit_steps_win(match):
    assert matched(match, steps=7) == 70


# The loop


class FakeEngine:
    """Notes what it is asked; its loss is a function of what it gets."""

    def __init__(self, nan_at=None):
        self.calls, self.nan_at = [], nan_at

    def train_step(self, batches, global_tokens, learning_rate, seed):
        rows = [None if b is None else b.input_ids_BL.tolist() for b in batches]
        self.calls.append((rows, global_tokens, learning_rate, seed))
        return math.nan if len(self.calls) == self.nan_at else global_tokens * learning_rate

    def sum_over_workers(self, value):
        return value


def plan(rank=0, world=1, total_steps=23, seed=5):
    rows = tiny.rows(20)
    order = BatchOrder(len(rows), 6, total_steps * 6 - 2, seed)
    return Plan(rows, order, Schedule(total_steps, 0.1, 0.1), Share(rank, world, 2, 6), pad_id=0)


KEEP = (4, 10, 11, 23)


def run(engine, plan_, start=None, pause=(), is_urgent=lambda step: False, positions=None):
    steps, kept, positions = [], [], [] if positions is None else positions
    train_loop(
        engine,
        plan_,
        start=start or Position(),
        keep=KEEP,
        pause=pause,
        on_step=steps.append,
        on_keep=kept.append,
        on_pause=positions.append,
        is_urgent=is_urgent,
    )
    return steps, kept, positions


def tokens_of(plan_, steps):
    return [plan_.micro_batches(step)[1] for step in steps]


def test_train_loop_reports_every_ten_steps_and_at_kept_steps_the_mean_since_the_last():
    engine, plan_ = FakeEngine(), plan()
    steps, kept, _ = run(engine, plan_)
    assert len(engine.calls) == 23
    assert [report.step for report in steps] == [10, 20, 23]
    assert [report.step for report in kept] == list(KEEP)

    def expected(after, until):
        span = range(after + 1, until + 1)
        tokens, rates = tokens_of(plan_, span), [plan_.schedule.learning_rate(step) for step in span]
        return sum(t * r for t, r in zip(tokens, rates, strict=True)) / sum(tokens), sum(tokens)

    for reports in (steps, kept):
        ends = [0, *(report.step for report in reports)]
        for after, report in zip(ends, reports, strict=False):
            mean, tokens = expected(after, report.step)
            assert report.mean_loss == pytest.approx(mean)
            assert report.response_tokens == tokens
            assert report.learning_rate == plan_.schedule.learning_rate(report.step)
            assert report.epoch == min(report.step * 6, 136) / 20


def test_train_loop_calls_step_then_keep_then_pause_after_the_step():
    engine, seen = FakeEngine(), []
    train_loop(
        engine,
        plan(),
        start=Position(),
        keep=(10,),
        pause=(10,),
        on_step=lambda r: seen.append(("step", r.step, len(engine.calls))),
        on_keep=lambda r: seen.append(("keep", r.step, len(engine.calls))),
        on_pause=lambda p: seen.append(("pause", p.step, len(engine.calls))),
    )
    assert seen[:3] == [("step", 10, 10), ("keep", 10, 10), ("pause", 10, 10)]


def test_train_loop_goes_on_from_a_pause_with_the_same_calls_and_reports():
    whole, rest = FakeEngine(), FakeEngine()
    steps, kept, positions = run(whole, plan(), pause=(10, 20))
    assert [position.step for position in positions] == [10, 20]
    for position in positions:
        rest = FakeEngine()
        steps_rest, kept_rest, _ = run(rest, plan(), position)
        assert rest.calls == whole.calls[position.step :]
        assert steps_rest == [report for report in steps if report.step > position.step]
        assert kept_rest == [report for report in kept if report.step > position.step]


@pytest.mark.parametrize("step", [3, 7, 10, 12])
def test_train_loop_in_a_hurry_pauses_after_any_step_and_goes_on_from_there(step):
    whole, positions = FakeEngine(), []
    steps, kept, _ = run(FakeEngine(), plan())
    run(whole, plan(), is_urgent=lambda now: now == step, positions=positions)
    assert [position.step for position in positions] == [step]
    rest = FakeEngine()
    steps_rest, kept_rest, _ = run(rest, plan(), positions[0])
    assert rest.calls == whole.calls[step:]
    for all_of_them, found in ((steps, steps_rest), (kept, kept_rest)):
        expected = [report for report in all_of_them if report.step > step]
        # The losses are added up in another order, and that is all.
        assert [astuple(report) for report in found] == [pytest.approx(astuple(report)) for report in expected]


def test_train_loop_pauses_change_no_reported_number():
    assert run(FakeEngine(), plan())[:2] == run(FakeEngine(), plan(), pause=(10, 20))[:2]


@pytest.mark.parametrize(
    ("total", "every", "expected"),
    [(100, None, {20, 40, 60, 80}), (23, None, {10, 20}), (10, None, set()), (100, 33, {40, 80}), (30, 1, {10, 20})],
)
def test_pauses_fall_on_steps_where_losses_are_summed(total, every, expected):
    assert pauses(total, every) == expected


def test_train_loop_workers_together_see_what_one_sees():
    one = FakeEngine()
    run(one, plan())
    workers = [FakeEngine() for _ in range(3)]
    for rank, engine in enumerate(workers):
        run(engine, plan(rank, 3))

    def rows_seen(call):
        return sorted(tuple(i for i in row if i) for part in call[0] if part for row in part)

    for step, call in enumerate(one.calls):
        together = sorted(row for engine in workers for row in rows_seen(engine.calls[step]))
        assert together == rows_seen(call)
        assert {engine.calls[step][1:3] for engine in workers} == {call[1:3]}
        assert len({engine.calls[step][3] for engine in workers}) == 3


def test_train_loop_dropout_seed_is_another_at_every_step():
    engine = FakeEngine()
    run(engine, plan())
    assert len({call[3] for call in engine.calls}) == 23


@pytest.mark.parametrize(("nan_at", "found_at"), [(2, 4), (11, 11), (12, 20), (22, 23)])
def test_train_loop_nan_is_a_data_error_and_nothing_after_it_is_kept(nan_at, found_at):
    steps, kept = [], []
    with pytest.raises(DataError, match=f"step {found_at}"):
        train_loop(
            FakeEngine(nan_at),
            plan(),
            start=Position(),
            keep=KEEP,
            pause=(),
            on_step=steps.append,
            on_keep=kept.append,
            on_pause=lambda _: None,
        )
    assert all(report.step < nan_at for report in [*steps, *kept])


def test_plan_counts_the_response_tokens_of_the_whole_global_batch():
    workers = [plan(rank, 4) for rank in range(4)]
    for step in (1, 23):
        counted = {worker.micro_batches(step)[1] for worker in workers}
        batches = [batch for worker in workers for batch in worker.micro_batches(step)[0] if batch is not None]
        assert counted == {sum(int(batch.response_BL.sum()) for batch in batches)}
