"""Engines against a hand-written AdamW step on the whole batch: plain torch, two workers, DeepSpeed's four stages."""

import json
import os
import shutil
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from s2l_ray import engines as engines_module
from s2l_ray import losses as losses_module
from s2l_ray.adapters import add_adapter
from s2l_ray.adapters import merged as without_adapter
from s2l_ray.computation import recompute_activations
from s2l_ray.config import LoraConfig
from s2l_ray.engines import (
    DeepSpeedEngine,
    EngineSettings,
    TorchEngine,
    deepspeed_config,
    is_sealed,
    load_progress,
    save_progress,
    seal,
)
from s2l_ray.errors import ArtifactError
from s2l_ray.models import save_model
from s2l_ray.training import BatchOrder, Plan, Schedule, Share
from tests.unit import tiny

CPU = torch.device("cpu")
STEPS, RATE, CLIP, DECAY = 10, 0.02, 0.25, 0.1
STOP = 4
ROWS, GLOBAL = 19, 7
TOTAL = STEPS * GLOBAL - 4  # the last batch holds 3 rows: with two workers one micro-batch stays empty
ZERO = (0, 1, 2, 3)
LORA = LoraConfig(rank=2, alpha=8)
LORA_STEPS = 7
ADAPTED = (-1, 3)
"""Engines that train an adapter: plain torch, and ZeRO stages."""
ADAPTED_SLOWLY = (0, 2)
ANY_ADAPTED = [*ADAPTED, *(pytest.param(stage, marks=pytest.mark.slow) for stage in ADAPTED_SLOWLY)]


def build(seed=0, model_type="gpt_neox", **changes):
    # The bias of an attention key has the gradient zero; Adam would blow up its rounding errors to whole steps.
    return tiny.model(model_type, seed=seed, scale=2.0, attention_bias=False, **changes)


def adapted(seed=5, **changes):
    model = build(**changes)
    add_adapter(model, LORA, seed)
    return model


def plan_of(rank=0, world=1, micro=2):
    rows = tiny.rows(ROWS, seed=3)
    order = BatchOrder(ROWS, GLOBAL, TOTAL, seed=1)
    return Plan(rows, order, Schedule(STEPS, RATE, 0.2), Share(rank, world, micro, GLOBAL), pad_id=0)


def settings_of(plan, **changes):
    given = {"weight_decay": DECAY, "gradient_clipping": CLIP, "bf16": False}
    share = plan.share
    return EngineSettings(
        micro_batches=share.micro_batches,
        micro_batch_size=share.micro_batch_size,
        world_size=share.world_size,
        **{**given, **changes},
    )


def train(engine, plan, start=0, stop=STEPS):
    """Return the mean loss of every step, over all workers."""
    losses = []
    for step in range(start + 1, stop + 1):
        batches, tokens = plan.micro_batches(step)
        loss_sum = engine.train_step(batches, tokens, plan.schedule.learning_rate(step), plan.seed_of(step))
        losses.append(engine.sum_over_workers(loss_sum) / tokens)
    return losses


def by_hand():
    """Losses, weights and gradient norms of AdamW on the whole global batch, through transformers' own logits."""
    model, plan = build(), plan_of()
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in model.named_parameters()}
    losses, norms = [], []
    for step in range(1, STEPS + 1):
        batch = plan.rows.batch(plan.order.global_batch(step), 0)
        ids_BL, response_BL = torch.from_numpy(batch.input_ids_BL), torch.from_numpy(batch.response_BL)
        logits_BLV = model(input_ids=ids_BL).logits
        labels_BL = ids_BL.masked_fill(~response_BL, -100)
        loss = torch.nn.functional.cross_entropy(logits_BLV[:, :-1].flatten(0, 1), labels_BL[:, 1:].flatten())
        model.zero_grad()
        loss.backward()
        losses.append(loss.item())
        norm = torch.sqrt(sum((p.grad.double() ** 2).sum() for p in model.parameters()))
        norms.append(float(norm))
        rate = plan.schedule.learning_rate(step)
        with torch.no_grad():
            for name, p in model.named_parameters():
                gradient = p.grad * min(1.0, CLIP / float(norm))
                first, second = moments[name]
                first.mul_(0.9).add_(gradient, alpha=0.1)
                second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                p.mul_(1 - rate * DECAY)
                corrected = (second / (1 - 0.999**step)).sqrt() + 1e-8
                p.sub_(rate * (first / (1 - 0.9**step)) / corrected)
    return losses, model.state_dict(), norms


@pytest.fixture(scope="module")
def oracle():
    return by_hand()


def largest_difference(a, b):
    assert a.keys() == b.keys()
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a)


# Plain torch, one worker


def test_the_oracle_clips_and_learns(oracle):
    losses, _, norms = oracle
    assert min(norms) > 2 * CLIP
    assert max(losses) - min(losses) > 0.3


@pytest.mark.parametrize("micro", [1, 2, 3, 7, 16])
def test_torch_engine_is_adamw_by_hand_for_any_micro_batch(oracle, micro):
    losses, weights, _ = oracle
    plan = plan_of(micro=micro)
    engine = TorchEngine(build(), settings_of(plan), CPU)
    np.testing.assert_allclose(train(engine, plan), losses, rtol=0, atol=1e-5)
    assert largest_difference(engine.weights(), weights) < 2e-5


def test_torch_engine_first_step_equals_the_hand_written_to_a_millionth():
    plan = plan_of()
    model = build()
    batch = plan.rows.batch(plan.order.global_batch(1), 0)
    ids = torch.from_numpy(batch.input_ids_BL)
    labels = ids.masked_fill(~torch.from_numpy(batch.response_BL), -100)[:, 1:].flatten()
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.schedule.learning_rate(1), weight_decay=DECAY)
    torch.nn.functional.cross_entropy(model(input_ids=ids).logits[:, :-1].flatten(0, 1), labels).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    for micro in (1, 3, 7):
        plan = plan_of(micro=micro)
        engine = TorchEngine(build(), settings_of(plan), CPU)
        train(engine, plan, stop=1)
        weights = engine.weights()
        for name, expected in model.named_parameters():
            # Adam's first step is the gradient's sign: where that is zero but for rounding, it has no meaning.
            counts = expected.grad.abs() > 1e-5
            assert counts.float().mean() > 0.2
            torch.testing.assert_close(weights[name][counts], expected[counts], rtol=0, atol=1e-6)


def test_torch_engine_clipping_is_that_of_its_settings(oracle):
    plan = plan_of()
    engine = TorchEngine(build(), settings_of(plan, gradient_clipping=1e9), CPU)
    assert abs(np.array(train(engine, plan)) - oracle[0]).max() > 1e-3


@pytest.mark.parametrize(("model_type", "tied"), [("gpt_neox", False), ("gpt2", True)])
def test_torch_engine_goes_on_bit_for_bit(tmp_path, model_type, tied):
    plan = plan_of()
    whole = TorchEngine(build(0, model_type), settings_of(plan), CPU)
    losses = train(whole, plan)
    first = TorchEngine(build(0, model_type), settings_of(plan), CPU)
    train(first, plan, stop=STOP)
    first.save(tmp_path)
    torch.manual_seed(99)
    resumed = TorchEngine(build(7, model_type), settings_of(plan), CPU)
    resumed.load(tmp_path)
    # gpt2 has dropout: its draws must be the same too.
    assert train(resumed, plan, start=STOP) == losses[STOP:]
    assert largest_difference(resumed.weights(), whole.weights()) == 0
    head, embedding = resumed._model.get_output_embeddings(), resumed._model.get_input_embeddings()
    assert (head.weight is embedding.weight) == tied


def test_torch_engine_saves_before_the_first_step_too(tmp_path):
    plan = plan_of()
    TorchEngine(build(), settings_of(plan), CPU).save(tmp_path)
    engine = TorchEngine(build(seed=5), settings_of(plan), CPU)
    engine.load(tmp_path)
    assert train(engine, plan, stop=2) == train(TorchEngine(build(), settings_of(plan), CPU), plan, stop=2)


def test_torch_engine_bf16_is_close_to_fp32(oracle):
    plan = plan_of()
    engine = TorchEngine(build(), settings_of(plan, bf16=True), CPU)
    np.testing.assert_allclose(train(engine, plan)[:3], oracle[0][:3], rtol=0.03)
    assert {tensor.dtype for tensor in engine.weights().values()} == {torch.float32}


def test_torch_engine_a_nan_loss_is_reported_as_such():
    model, plan = build(), plan_of()
    with torch.no_grad():
        model.get_output_embeddings().weight[0, 0] = torch.nan
    assert np.isnan(train(TorchEngine(model, settings_of(plan), CPU), plan, stop=1)).all()


def test_progress_is_read_as_it_was_written(tmp_path):
    progress = {"step": 3, "steps": [{"mean_loss": 0.1}], "stops": []}
    save_progress(tmp_path, progress)
    assert load_progress(tmp_path) == progress


# Two workers. One launch computes everything, and the tests look at what it wrote.


@contextmanager
def process_group(rank, world, folder):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world, timeout=timedelta(seconds=200)
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def make_engine(kind, plan, seed=0, model=None):
    model = model or build(seed)
    if kind < 0:
        return TorchEngine(model, settings_of(plan), CPU)
    return DeepSpeedEngine(model, settings_of(plan), CPU, kind)


def merged(engine, folder, rank):
    """Save to a folder per worker and put them together, as Ray Train does."""
    own = folder / f"rank{rank}"
    own.mkdir(parents=True)
    engine.save(own)
    dist.barrier()
    if rank == 0:
        for part in folder.glob("rank*"):
            shutil.copytree(part, folder / "merged", dirs_exist_ok=True)
    dist.barrier()
    return folder / "merged"


def two_workers(rank, world, folder):
    torch.set_num_threads(1)
    results = {}
    with process_group(rank, world, folder):
        for kind in (-1, *ZERO):
            plan = plan_of(rank, world)
            engine = make_engine(kind, plan)
            losses = train(engine, plan, stop=STOP)
            saved = merged(engine, folder / str(kind), rank) if kind in (-1, 0, 3) else None
            losses += train(engine, plan, start=STOP)
            weights = engine.weights()
            assert (weights is None) == (rank != 0)
            if weights is not None:
                save_file({name: tensor.clone() for name, tensor in weights.items()}, folder / f"{kind}.safetensors")
            resumed = []
            if saved is not None:
                engine = make_engine(kind, plan, seed=7)
                if kind == 3:
                    with pytest.raises(ArtifactError, match="saved by 1 workers, this run has 2"):
                        engine.load(saved.parent / "rank0")
                engine.load(saved)
                resumed = train(engine, plan, start=STOP)
            results[str(kind)] = {"losses": losses, "resumed": resumed}
        for kind in ADAPTED:
            results[f"lora {kind}"] = two_workers_with_an_adapter(kind, plan, folder / f"lora{kind}", rank)
        for kind in (-1, 3):
            results[f"recomputed {kind}"] = recomputed(kind, plan)
        losses_module.HEAD_CHUNK = 3
        engines_module.deepspeed_config = with_every_weight_sharded
        results["sharded 3"] = {"losses": train(make_engine(3, plan), plan, stop=STOP), "resumed": []}
        results["sharded and recomputed 3"] = recomputed(3, plan)
        model = build(model_type="llama", tie_word_embeddings=True)
        engine = make_engine(3, plan, model=model)
        train(engine, plan, stop=2)
        weights = engine.weights()
        if weights is not None:
            save_model(model, weights, folder / "tied")
    (folder / f"results-{rank}.json").write_text(json.dumps(results))


def recomputed(kind, plan):
    model = build()
    recompute_activations(model)
    return {"losses": train(make_engine(kind, plan, model=model), plan, stop=STOP), "resumed": []}


def with_every_weight_sharded(settings, zero_stage):
    """Weights of fewer than 100,000 elements would stay whole on every worker under ZeRO 3, which ours all are."""
    config = deepspeed_config(settings, zero_stage)
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return config


def two_workers_with_an_adapter(kind, plan, folder, rank):
    model = adapted()
    engine = make_engine(kind, plan, model=model)
    losses = train(engine, plan, stop=STOP)
    saved = merged(engine, folder, rank)
    losses += train(engine, plan, start=STOP, stop=LORA_STEPS)
    weights = engine.weights()
    if weights is not None:
        save_file({name: tensor.clone() for name, tensor in weights.items()}, folder / "all.safetensors")
        save_file(without_adapter(model, weights), folder / "merged.safetensors")
    engine = make_engine(kind, plan, model=adapted(seed=6))
    engine.load(saved)
    return {"losses": losses, "resumed": train(engine, plan, start=STOP, stop=LORA_STEPS)}


def two_more_workers_with_an_adapter(rank, world, folder):
    torch.set_num_threads(1)
    with process_group(rank, world, folder):
        plan = plan_of(rank, world)
        found = {f"lora {k}": two_workers_with_an_adapter(k, plan, folder / f"lora{k}", rank) for k in ADAPTED_SLOWLY}
    (folder / f"results-{rank}.json").write_text(json.dumps(found))


def one_worker(rank, world, folder):
    torch.set_num_threads(1)
    plan = plan_of(micro=3)
    (folder / "alone").mkdir()
    with process_group(rank, world, folder / "alone"):
        losses = {str(stage): train(make_engine(stage, plan), plan) for stage in (0, 3)}
        in_bf16 = settings_of(plan, bf16=True)
        for stage in ZERO:
            engine, resumed = (DeepSpeedEngine(build(seed), in_bf16, CPU, stage) for seed in (0, 7))
            losses[f"bf16 {stage}"] = train(engine, plan, stop=STOP)
            (folder / f"bf16-{stage}").mkdir()
            engine.save(folder / f"bf16-{stage}")
            losses[f"bf16 {stage}"] += train(engine, plan, start=STOP)
            resumed.load(folder / f"bf16-{stage}")
            losses[f"bf16 {stage} resumed"] = train(resumed, plan, start=STOP)
        with pytest.raises(ArtifactError, match="no DeepSpeed checkpoint"):
            make_engine(0, plan).load(folder / "alone")
    (folder / "alone.json").write_text(json.dumps(losses))


def start(function, n_workers, folder):
    """Start worker processes, which have this file imported already: that takes longer than all they compute."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deepspeed", "transformers.models.gpt_neox.modeling_gpt_neox", __name__])
    return torch.multiprocessing.start_processes(
        function, (n_workers, folder), n_workers, join=False, start_method="forkserver"
    )


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launched")
    for launch in [start(two_workers, 2, folder), start(one_worker, 1, folder)]:
        while not launch.join():
            pass
    return folder


def results_of(folder, kind):
    first, second = (json.loads((folder / f"results-{rank}.json").read_text())[str(kind)] for rank in (0, 1))
    assert first == second
    return first["losses"], first["resumed"]


def test_the_last_step_leaves_a_worker_without_rows():
    batches, _ = plan_of(rank=1, world=2).micro_batches(STEPS)
    assert [None if batch is None else len(batch.input_ids_BL) for batch in batches] == [1, None]


def test_two_torch_workers_compute_what_one_does(launched, oracle):
    losses, _ = results_of(launched, -1)
    np.testing.assert_allclose(losses, oracle[0], rtol=0, atol=1e-5)
    assert largest_difference(load_file(launched / "-1.safetensors"), oracle[1]) < 2e-5


@pytest.mark.parametrize("stage", ZERO)
def test_deepspeed_computes_what_plain_torch_does(launched, oracle, stage):
    losses, _ = results_of(launched, stage)
    np.testing.assert_allclose(losses, oracle[0], rtol=0, atol=1e-5)
    assert largest_difference(load_file(launched / f"{stage}.safetensors"), oracle[1]) < 1e-4


@pytest.mark.parametrize("kind", [-1, 0, 3])
def test_two_workers_go_on_with_the_losses_of_an_uninterrupted_run(launched, kind):
    losses, resumed = results_of(launched, kind)
    assert resumed == losses[STOP:]


@pytest.mark.parametrize("kind", ["sharded 3", "sharded and recomputed 3"])
def test_weights_that_zero_3_shards_are_trained_by_workers_with_other_numbers_of_positions(launched, kind):
    np.testing.assert_allclose(results_of(launched, kind)[0], results_of(launched, -1)[0][:STOP], rtol=0, atol=1e-5)


def test_a_torch_checkpoint_of_two_workers_is_gone_on_from_by_one(launched, oracle):
    plan = plan_of()
    engine = TorchEngine(build(seed=7), settings_of(plan), CPU)
    engine.load(launched / "-1" / "merged")
    np.testing.assert_allclose(train(engine, plan, start=STOP), oracle[0][STOP:], rtol=0, atol=1e-5)


def test_tied_weights_gathered_from_zero_3_load_tied(launched):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(launched / "tied")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    plan = plan_of()
    engine = TorchEngine(build(model_type="llama", tie_word_embeddings=True), settings_of(plan), CPU)
    train(engine, plan, stop=2)
    assert largest_difference(model.state_dict(), engine.weights()) < 1e-4


# Low-rank adapters, and activations computed again


@pytest.fixture(scope="module")
def adapted_oracle():
    """Losses and weights of one plain torch worker, and the weights that it began with."""
    model, plan = adapted(), plan_of()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    engine = TorchEngine(model, settings_of(plan), CPU)
    losses = train(engine, plan, stop=LORA_STEPS)
    return losses, {name: tensor.clone() for name, tensor in engine.weights().items()}, before


@pytest.fixture(scope="module")
def launched_slowly(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launched-slowly")
    workers = start(two_more_workers_with_an_adapter, 2, folder)
    while not workers.join():
        pass
    return folder


@pytest.fixture
def launched_with(request, kind):
    """The folder in which an engine of this kind has trained an adapter."""
    return request.getfixturevalue("launched_slowly" if kind in ADAPTED_SLOWLY else "launched")


def test_training_an_adapter_moves_no_weight_but_its_own(adapted_oracle):
    _, weights, before = adapted_oracle
    moved = {name for name in before if not torch.equal(before[name], weights[name])}
    assert moved == {name for name in before if ".lora_" in name}
    assert len(moved) == 2 * 2 * 4


@pytest.mark.parametrize("kind", ANY_ADAPTED)
def test_two_workers_train_an_adapter_as_one_does(launched_with, adapted_oracle, kind):
    losses, _ = results_of(launched_with, f"lora {kind}")
    np.testing.assert_allclose(losses, adapted_oracle[0], rtol=0, atol=1e-5)
    assert largest_difference(load_file(launched_with / f"lora{kind}" / "all.safetensors"), adapted_oracle[1]) < 1e-4


@pytest.mark.parametrize("kind", ANY_ADAPTED)
def test_two_workers_go_on_with_an_adapter_where_they_were(launched_with, kind):
    losses, resumed = results_of(launched_with, f"lora {kind}")
    assert resumed == losses[STOP:]


@pytest.mark.parametrize("kind", ANY_ADAPTED)
def test_merged_weights_of_any_engine_are_the_model_with_its_adapter(launched_with, adapted_oracle, kind):
    with_adapter, plain = adapted(), build()
    with_adapter.load_state_dict(adapted_oracle[1])
    plain.load_state_dict(load_file(launched_with / f"lora{kind}" / "merged.safetensors"))
    ids_BL = torch.arange(2, 26).reshape(2, 12)
    torch.testing.assert_close(plain(ids_BL).logits, with_adapter(ids_BL).logits, rtol=0, atol=1e-3)


def test_a_checkpoint_of_an_adapter_holds_nothing_that_is_frozen(launched):
    saved = launched / "lora-1" / "merged" / "training_state.safetensors"
    names = {name for name in load_file(saved) if name.startswith("model.")}
    assert names == {f"model.{name}" for name in adapted().state_dict() if ".lora_" in name}


def test_a_checkpoint_of_other_trained_weights_is_refused(launched):
    plan = plan_of()
    with pytest.raises(ArtifactError, match="another model"):
        TorchEngine(build(), settings_of(plan), CPU).load(launched / "lora-1" / "merged")


@pytest.mark.parametrize("kind", [-1, 3])
def test_two_workers_compute_activations_again_to_the_same_bits(launched, kind):
    assert results_of(launched, f"recomputed {kind}")[0] == results_of(launched, kind)[0][:STOP]


@pytest.mark.parametrize(("make", "model_type"), [(build, "llama"), (build, "gpt2"), (adapted, "gpt2")])
def test_activations_computed_again_give_the_same_bits(make, model_type):
    plan = plan_of()
    kept, again = (make(model_type=model_type) for _ in range(2))
    recompute_activations(again)
    engines = [TorchEngine(model, settings_of(plan), CPU) for model in (kept, again)]
    # gpt2 has dropout: what is drawn again must be the same.
    assert train(engines[0], plan, stop=3) == train(engines[1], plan, stop=3)
    assert largest_difference(kept.state_dict(), again.state_dict()) == 0


# DeepSpeed with a single worker, which is what a laptop has


@pytest.mark.parametrize("stage", [0, 3])
def test_deepspeed_with_one_worker_computes_what_plain_torch_does(launched, oracle, stage):
    losses = json.loads((launched / "alone.json").read_text())[str(stage)]
    np.testing.assert_allclose(losses, oracle[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("stage", ZERO)
def test_deepspeed_in_bf16_takes_the_same_steps_under_every_stage_and_goes_on_with_them(launched, oracle, stage):
    # Left to itself, ZeRO 0 counts a step before the first, and Adam's correction for young moments comes too late.
    losses = json.loads((launched / "alone.json").read_text())
    np.testing.assert_allclose(losses[f"bf16 {stage}"], losses["bf16 1"], rtol=0, atol=5e-3)
    np.testing.assert_allclose(losses[f"bf16 {stage}"][:3], oracle[0][:3], rtol=0.03)
    assert losses[f"bf16 {stage} resumed"] == losses[f"bf16 {stage}"][STOP:]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gradients_of_micro_batches_are_summed_in_fp32(stage):
    assert deepspeed_config(settings_of(plan_of(), bf16=True), stage)["data_types"] == {"grad_accum_dtype": "fp32"}


def test_deepspeed_config_says_everything_that_changes_a_number():
    plan = plan_of(micro=2)
    config = deepspeed_config(settings_of(plan), 2)
    assert config["gradient_clipping"] == CLIP
    assert config["gradient_accumulation_steps"] == plan.share.micro_batches
    assert config["train_micro_batch_size_per_gpu"] == 2


def test_a_sealed_checkpoint_of_two_workers_is_whole_and_any_change_shows(tmp_path):
    for rank, name in enumerate(["a/one.bin", "two.bin"]):
        worker = tmp_path / f"worker-{rank}"
        (worker / name).parent.mkdir(parents=True)
        (worker / name).write_bytes(bytes([rank]) * 9)
        seal(worker, rank)
        shutil.copytree(worker, tmp_path / "merged", dirs_exist_ok=True)
    merged = tmp_path / "merged"
    (merged / ".metadata.json").write_text("{}")
    assert is_sealed(merged)
    (merged / "two.bin").write_bytes(b"\x01" * 8 + b"\x00")
    assert not is_sealed(merged)
    (merged / "two.bin").write_bytes(b"\x01" * 9)
    assert is_sealed(merged)
    (merged / "three.bin").write_bytes(b"")
    assert not is_sealed(merged)
    (merged / "three.bin").unlink()
    (merged / "a" / "one.bin").unlink()
    assert not is_sealed(merged)


def test_a_checkpoint_without_a_seal_or_with_half_a_seal_is_not_whole(tmp_path):
    (tmp_path / "weights").write_bytes(b"w")
    assert not is_sealed(tmp_path)
    seal(tmp_path, 0)
    (tmp_path / "checksums-0.json").write_text('{"weights"')
    assert not is_sealed(tmp_path)
