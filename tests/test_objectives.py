"""Every objective against separate ordinary passes with its formula written out, in float64; what trains beside it."""

import logging
import math
from copy import deepcopy
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, conversation, tiny_model
from peft import LoraConfig
from transformers import TrainerCallback

from step_jepa import StepJEPAConfig, StepJEPARepresentationTrainer
from step_jepa.arguments.parsing import overridden
from step_jepa.batches.collate import BranchCollator
from step_jepa.batches.views import Views, random_targets
from step_jepa.errors import UserError
from step_jepa.objectives import OBJECTIVES

# Of different lengths and numbers of steps; the second ends without an answer line. Where a step ends without a full
# stop, its separator is a token of its own.
RECORDS = [
    conversation("Let x be two", "Then double it.", "So we have four.", "#### 4", question="What is twice two?"),
    conversation("One.", "One and one is two, as is well known", "Two and one is three.", question="Count to 3!"),
    conversation("Six is two times three.", "Halve it", "#### 3", question="How much is half of six?"),
    conversation("It is raining.", "So take an umbrella.", "#### yes", question="Umbrella?"),
]
QUIET = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
SGD = {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant", "max_steps": 3}
LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
LBD, GAMMA, V = 0.7, 1.3, 264


def trainer_for(folder, *, dtype=torch.float64, records=RECORDS, peft_config=None, **options):
    """A trainer of a model with three layers, so that there is one between the first and the last."""
    options = overridden([StepJEPAConfig], {**QUIET, "pairs": "all", "lbd": LBD, "gamma": GAMMA}, options)
    model = tiny_model(num_hidden_layers=3).to(dtype)
    config = StepJEPAConfig(output_dir=str(folder / "out"), **options)
    trainer = StepJEPARepresentationTrainer(
        model, config, records, processing_class=byte_tokenizer(), peft_config=peft_config
    )
    if trainer.jepa.state.head is not None:
        with torch.no_grad():
            trainer.jepa.state.head.to(dtype).weight.add_(
                torch.randn(32, 32, generator=torch.Generator().manual_seed(3))
            )
    return trainer


def trained(folder, **options):
    trainer = trainer_for(folder, **{"dtype": torch.float32, "per_device_train_batch_size": 4, **SGD, **options})
    trainer.train()
    return trainer


def history(trainer, name="loss"):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def batch_of(trainer, places=(0, 1, 2)):
    return BranchCollator(258)([trainer.train_dataset[place] for place in places])


def terms_of(trainer, batch):
    return trainer.representation.forward.training(batch)


def losses_of(trainer, batch):
    terms = terms_of(trainer, batch)
    return trainer.means_of_batch(terms)[:2]


# The reference: separate passes without any mask


def states(model, ids, positions=None, layer=-1):
    """(L, H) of one ordinary pass."""
    places = torch.tensor([list(positions or range(len(ids)))])
    # with a gap in the positions and no mask transformers would take the row for two packed ones
    out = model(
        torch.tensor([ids]),
        attention_mask=torch.ones_like(places),
        position_ids=places,
        output_hidden_states=True,
        use_cache=False,
    )
    return out.hidden_states[layer][0]


def language_loss(trainer, places=(0, 1, 2)):
    nll = []
    for place in places:
        example = trainer.train_dataset.examples[place]
        logits = trainer.model(torch.tensor([example.input_ids])).logits[0, :, :V].log_softmax(-1)
        nll += [-logits[place - 1, label] for place, label in enumerate(example.labels) if label != -100]
    return torch.stack(nll).mean()


def cosine(a, b):
    return 1 - (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())


def step_views(trainer, example, **kind):
    """(predicted, target) of all pairs of steps."""
    model, ids, layer = trainer.model, example.input_ids, kind.get("layer", -1)
    predictors = list(range(V, V + kind.get("predictors", 2)))
    pool = (lambda h: h.mean(0)) if kind.get("pooling") == "mean" else (lambda h: h[-1])
    for i, j in zip(range(len(example.steps)), range(kind.get("horizon", 1), len(example.steps)), strict=False):
        if j == example.answer:
            continue
        (first, before), (start, stop) = example.steps[i], example.steps[j]
        if kind.get("read") == "content":
            stop, end = start + len(content(ids[start:stop])), first + len(content(ids[first:before]))
        else:
            end = before
        if predictors:
            predicted = pool(states(model, ids[:before] + predictors, layer=layer)[before:])
        else:
            predicted = pool(states(model, ids[:end], layer=layer)[first:])
        if kind.get("predictor_head") == "linear":
            predicted = trainer.model.predictor_head.weight @ predicted
        if kind.get("target") == "context":
            target = states(model, ids[:stop], layer=layer)[start:]
        elif kind.get("target_sees") == "bos":
            target = states(model, ids[:1] + ids[start:stop], [0, *range(start, stop)], layer)[1:]
        else:
            target = states(model, ids[start:stop], range(start, stop), layer)
        yield predicted, pool(target)


def content(ids):
    """The tokens of a step before its separator; the byte tokenizer has one token for a full stop and the separator."""
    tokenizer = byte_tokenizer()
    return ids if str(tokenizer.decode(ids[-1:])).strip() else ids[:-1]


def llm_views(trainer, example, **kind):
    """(predicted, target) of the two turns, rendered anew."""
    tokenizer, record = byte_tokenizer(), RECORDS[example.index]
    predictors = list(range(V, V + 2))

    def parts(turn):
        text = turn["content"]
        if kind.get("plain"):
            return "", text, ""
        whole = str(tokenizer.apply_chat_template([turn], tokenize=False))
        head, _, tail = whole.rpartition(text)
        return head, text, tail

    def encoded(turn, inserted):
        head, text, tail = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts(turn))
        return head + inserted + text + tail if kind.get("front_pred") else head + text + inserted + tail

    text, answer = record["messages"]
    source, goal = (answer, text) if kind.get("reverse_pred") else (text, answer)
    last = kind.get("last_token", -1)
    yield states(trainer.model, encoded(source, predictors))[last], states(trainer.model, encoded(goal, []))[last]


def stp_views(trainer, example, spans=4, **kind):
    """h_t - h_r and h_r - h_s, with s < r < t drawn once more."""
    h, rng = states(trainer.model, example.input_ids), Random(f"42 0 {example.index} STP")
    for _ in range(spans):
        s, r, t = sorted(rng.sample(range(example.steps[0][0], example.steps[-1][1]), 3))
        yield h[t] - h[r], h[r] - h[s]


def released_spans(example, spans):
    """[p, q) in question + answer, their chat tokens left out, drawn once more."""
    (u0, u1), a0, a1 = example.user, example.steps[0][0], example.steps[-1][1]
    rng, length = Random(f"42 0 {example.index} STPReleased"), u1 - u0 + a1 - a0
    for _ in range(spans):
        p = rng.randrange(length)
        q = rng.randrange(p + 1, length + 1)
        while q - p == length:
            q = rng.randrange(p + 1, length + 1)
        yield p, q


def released_views(trainer, example, spans=4, **kind):
    """What the state moves before and after the patch, and over it, case by case."""
    (u0, u1), a0, a1 = example.user, example.steps[0][0], example.steps[-1][1]
    h = states(trainer.model, example.input_ids)
    question = u1 - u0
    for p, q in released_spans(example, spans):
        if q <= question:  # the patch lies in the question
            p, q = u0 + p, u0 + q
            before, patch = h[p - 1] - h[u0 - 1], h[q - 1] - h[p - 1]
            after = h[u1 - 1] - h[q - 1] + h[a1 - 1] - h[a0 - 1]
        elif p >= question:  # in the answer
            p, q = a0 + p - question, a0 + q - question
            before = h[u1 - 1] - h[u0 - 1] + h[p - 1] - h[a0 - 1]
            patch, after = h[q - 1] - h[p - 1], h[a1 - 1] - h[q - 1]
        else:  # across
            p, q = u0 + p, a0 + q - question
            before = h[p - 1] - h[u0 - 1]
            patch, after = h[u1 - 1] - h[p - 1] + h[q - 1] - h[a0 - 1], h[a1 - 1] - h[q - 1]
        yield before + after, patch


def ssp_views(trainer, example, **kind):
    """z_k - z_(k-1) and z_(k+1) - z_k at the ends of steps."""
    h = states(trainer.model, example.input_ids)
    if kind.get("read") == "content":
        ends = [start + len(content(example.input_ids[start:stop])) - 1 for start, stop in example.steps]
    else:
        ends = [stop - 1 for _, stop in example.steps]
    for k in range(1, len(ends) - 1):
        yield h[ends[k]] - h[ends[k - 1]], h[ends[k + 1]] - h[ends[k]]


VIEWS = {
    "step_jepa": step_views,
    "llm_jepa": llm_views,
    "stp": stp_views,
    "stp_released": released_views,
    "ssp": ssp_views,
}


def views_of(trainer, name="step_jepa", places=(0, 1, 2), **kind):
    examples = [trainer.train_dataset.examples[place] for place in places]
    return [(*pair, example.index) for example in examples for pair in VIEWS[name](trainer, example, **kind)]


def gradients(trainer, loss):
    return torch.autograd.grad(loss, list(trainer.model.parameters()), materialize_grads=True)


def agrees(trainer, got, wanted):
    """The two sums of the loss are the reference's, and so is every parameter's gradient."""
    for ours, reference in zip(got, wanted, strict=True):
        assert ours.item() == pytest.approx(reference.item(), rel=1e-6)
    ours, reference = (gradients(trainer, lm + LBD * jepa) for lm, jepa in (got, wanted))
    for (name, _), a, b in zip(trainer.model.named_parameters(), ours, reference, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm() + 1e-12, name
    assert sum(b.norm() for b in reference) > 0.1


KINDS: list[dict[str, Any]] = [
    {},
    {"predictors": 0},
    {"horizon": 2},
    {"target": "context"},
    {"target": "context", "predictors": 0, "pooling": "mean"},
    {"pooling": "mean"},
    {"read": "content"},
    {"read": "content", "predictors": 0},
    {"target_sees": "bos"},
    {"target_sees": "bos", "pooling": "mean", "read": "content"},
    {"layer": -2},
    {"layer": 1},
    {"layer": 3, "horizon": 2, "predictors": 0},
    {"predictor_head": "linear"},
    {"objective": "llm_jepa"},
    {"objective": "llm_jepa", "front_pred": True},
    {"objective": "llm_jepa", "reverse_pred": True},
    {"objective": "llm_jepa", "last_token": -2},
    {"objective": "llm_jepa", "plain": True},
    {"objective": "llm_jepa", "plain": True, "front_pred": True, "reverse_pred": True, "last_token": -3},
    {"objective": "stp"},
    {"objective": "stp_released", "pairs_per_example": 12},
    {"objective": "ssp"},
    {"objective": "ssp", "read": "content"},
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: ",".join(f"{k}={v}" for k, v in kind.items()) or "default")
def test_loss_and_gradients_are_those_of_separate_passes(tmp_path, kind):
    name, spans = kind.get("objective", "step_jepa"), kind.get("pairs_per_example", 4)
    predictors = {"predictors": 2} if OBJECTIVES[name].predicts else {}
    trainer = trainer_for(tmp_path, **{**predictors, **kind})
    views = views_of(trainer, name, **{**kind, "spans": spans})
    assert len(views) >= 2
    reference = torch.stack([cosine(predicted, target) for predicted, target, _ in views]).mean()
    agrees(trainer, losses_of(trainer, batch_of(trainer)), (GAMMA * language_loss(trainer), reference))


def test_the_released_patch_lies_in_the_question_in_the_answer_and_across(tmp_path):
    """The draws of the case above have all three."""
    examples = trainer_for(tmp_path, objective="stp_released").train_dataset.examples[:3]
    where = {
        (p < example.user[1] - example.user[0], q > example.user[1] - example.user[0])
        for example in examples
        for p, q in released_spans(example, 12)
    }
    assert where == {(True, False), (False, True), (True, True)}


def test_stp_reads_three_places_of_the_answer_in_order(tmp_path):
    trainer = trainer_for(tmp_path, objective="stp", pairs_per_example=9)
    example, row = trainer.train_dataset.examples[0], trainer.train_dataset[0]
    assert len(row.pairs) == 9
    assert set(row.branch) == {0}
    for pair in row.pairs:
        (t, one), (r, minus) = pair.predicted
        (again, _), (s, _) = pair.target
        assert (one, minus, again) == (1, -1, r)
        assert example.steps[0][0] <= s < r < t < example.steps[-1][1]


def test_pairs_first_is_one_span_an_example(tmp_path):
    for name in ("stp", "stp_released"):
        assert len(trainer_for(tmp_path, objective=name, pairs="first").train_dataset[0].pairs) == 1


# Distances and regularisers


def unit(x):
    return x / x.square().sum(-1, keepdim=True).sqrt()


def info(predicted, target, problem, negatives="both", temperature=0.07):
    """-log of a pair's own share among itself and its negatives."""
    terms = []
    for i in range(len(problem)):
        scores = {j: (unit(predicted[i]) @ unit(target[j]) / temperature).exp() for j in range(len(problem))}
        same = {j for j in scores if problem[j] == problem[i] and j != i}
        others = {j for j in scores if problem[j] != problem[i]}
        among = {"both": same | others, "others": others, "same": same}[negatives]
        terms.append(-(scores[i] / (scores[i] + sum(scores[j] for j in among))).log())
    return torch.stack(terms).mean()


def spread(x):
    return unit(x) * x.shape[1] ** 0.5


def vicreg_term(x):
    x = spread(x)
    n, width = x.shape
    centred = x - x.mean(0)
    covariance = centred.T @ centred / (n - 1)
    deviation = (covariance.diagonal() + 1e-4).sqrt()
    off = covariance - covariance.diagonal().diag()
    return (1 - deviation).clamp(min=0).mean() + off.square().sum() / width / 25


def sigreg_term(x):
    x, seed = spread(x), Random("42 sigreg 0").getrandbits(63)
    drawn = torch.randn(32, 256, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    projected = x @ (drawn / drawn.square().sum(0).sqrt())
    total = torch.zeros(256, dtype=torch.float64)
    for k in range(-8, 9):  # the trapezoid rule on [-5, 5]
        t = 5 * k / 8
        real, imaginary = (t * projected).cos().mean(0), (t * projected).sin().mean(0)
        gaussian = math.exp(-t * t / 2)
        height = ((real - gaussian) ** 2 + imaginary**2) * gaussian
        total = total + height * (0.5 if abs(k) == 8 else 1) * 5 / 8
    return len(x) * total.mean()


def mean_of(pairwise):
    return lambda p, t, problem: torch.stack([pairwise(a, b) for a, b in zip(p, t, strict=True)]).mean()


def less_mean(formula):
    """After one step the running means are those of the first batch, which carry no gradient."""
    return lambda p, t, problem: formula(p - p.mean(0).detach(), t - t.mean(0).detach(), problem)


def regularised(term):
    return lambda p, t, problem: mean_of(cosine)(p, t, problem) + 0.3 * (term(p) + term(t)) / 2


LOSSES: list[tuple[dict[str, Any], Any]] = [
    ({"loss": "l2"}, mean_of(lambda a, b: (a - b).square().sum().sqrt())),
    ({"loss": "mse"}, mean_of(lambda a, b: (a - b).square().sum() / 32)),
    ({"loss": "mse", "pooling": "mean"}, mean_of(lambda a, b: (a - b).square().sum() / 32)),
    ({"loss": "normalised_l2"}, mean_of(lambda a, b: (unit(a) - unit(b)).square().sum().sqrt())),
    ({"loss": "normalised_mse"}, mean_of(lambda a, b: (unit(a) - unit(b)).square().sum())),
    ({"loss": "infonce"}, info),
    ({"loss": "infonce", "temperature": 0.5}, lambda p, t, problem: info(p, t, problem, temperature=0.5)),
    ({"loss": "infonce", "negatives": "others"}, lambda p, t, problem: info(p, t, problem, "others")),
    ({"loss": "infonce", "negatives": "same"}, lambda p, t, problem: info(p, t, problem, "same")),
    ({"loss": "centred_cosine"}, less_mean(mean_of(cosine))),
    ({"loss": "centred_infonce"}, less_mean(info)),
    ({"regulariser": "vicreg", "regulariser_weight": 0.3}, regularised(vicreg_term)),
    ({"regulariser": "sigreg", "regulariser_weight": 0.3}, regularised(sigreg_term)),
]


@pytest.mark.parametrize(("options", "formula"), LOSSES, ids=[" ".join(map(str, x.values())) for x, _ in LOSSES])
def test_the_loss_of_a_micro_batch_is_its_formula_on_reference_views(tmp_path, options, formula):
    trainer = trainer_for(tmp_path, predictors=2, **options)
    batch = batch_of(trainer)
    if options.get("loss", "").startswith("centred"):
        trainer.jepa.state.accumulate("step_jepa", terms_of(trainer, batch).views.of(0))
        trainer.jepa.state.after_step(trainer.model)
    predicted, target, problem = zip(*views_of(trainer, **options), strict=True)
    reference = formula(torch.stack(predicted), torch.stack(target), problem)
    agrees(trainer, losses_of(trainer, batch), (GAMMA * language_loss(trainer), reference))


# Several objectives


def test_several_objectives_add_up_by_weight(tmp_path):
    trainer = trainer_for(tmp_path, predictors=2, objective=["step_jepa", "stp", "llm_jepa"], weights=[1, 0.5, 2])
    means = [
        torch.stack([cosine(predicted, target) for predicted, target, _ in views_of(trainer, name)]).mean()
        for name in ("step_jepa", "stp", "llm_jepa")
    ]
    reference = means[0] + 0.5 * means[1] + 2 * means[2]
    agrees(trainer, losses_of(trainer, batch_of(trainer)), (GAMMA * language_loss(trainer), reference))


def test_the_predictor_head_is_for_the_views_of_predictors_only(tmp_path):
    trainer = trainer_for(tmp_path, predictors=2, objective=["stp", "step_jepa"], predictor_head="linear")
    kinds = [("stp", {}), ("step_jepa", {"predictor_head": "linear"})]
    means = [torch.stack([cosine(a, b) for a, b, _ in views_of(trainer, name, **kind)]).mean() for name, kind in kinds]
    agrees(trainer, losses_of(trainer, batch_of(trainer)), (GAMMA * language_loss(trainer), sum(means)))


def test_draws_of_an_objective_do_not_depend_on_its_neighbours(tmp_path):
    options = {"pairs": "random", "pairs_per_example": 1}

    def drawn(wanted, *names):
        trainer, found = trainer_for(tmp_path, objective=list(names), **options), []
        for epoch in range(6):
            trainer.train_dataset.epoch.fill_(epoch)
            pairs = [pair for place in range(4) for pair in trainer.train_dataset[place].pairs]
            own = [pair for pair in pairs if pair.objective == names.index(wanted)]
            # branches stand elsewhere in the row, trunks do not
            found.append([pair.step if wanted == "step_jepa" else (pair.predicted, pair.target) for pair in own])
        return found

    for wanted, other in (("step_jepa", "llm_jepa"), ("step_jepa", "stp"), ("stp", "stp_released")):
        alone = drawn(wanted, wanted)
        assert alone == drawn(wanted, wanted, other) == drawn(wanted, other, wanted)
        assert len({str(each) for each in alone}) > 1  # and epochs differ


def test_jepa_ratio_drops_all_objectives_at_once_and_in_the_same_steps(tmp_path):
    def logs(*names):
        options = {"objective": list(names), "jepa_ratio": 0.5, "max_steps": 8}
        return [entry for entry in trained(tmp_path, **options).state.log_history if "pairs" in entry]

    both, alone = logs("step_jepa", "stp"), logs("step_jepa")
    carried = [entry["pairs"] > 0 for entry in both]
    assert carried == [entry["pairs"] > 0 for entry in alone]
    assert set(carried) == {True, False}
    for entry, with_pairs in zip(both, carried, strict=True):
        assert with_pairs == ("stp_loss" in entry) == ("step_jepa_loss" in entry)
        extra = LBD * entry["jepa_loss"] if with_pairs else 0.0
        assert entry["loss"] == pytest.approx(GAMMA * entry["lm_loss"] + extra, rel=1e-5)
        if with_pairs:
            assert entry["jepa_loss"] == pytest.approx(entry["step_jepa_loss"] + entry["stp_loss"], rel=1e-5)


# Who reads the target


def with_targets(trainer, read_by):
    """The loss with targets read by another model, without gradient."""
    other = SimpleNamespace(model=read_by, train_dataset=trainer.train_dataset)  # what the references ask of a trainer
    pairs = zip(views_of(trainer), views_of(other), strict=True)
    reference = torch.stack([cosine(own[0], foreign[1].detach()) for own, foreign in pairs]).mean()
    agrees(trainer, losses_of(trainer, batch_of(trainer)), (GAMMA * language_loss(trainer), reference))


def test_stop_gradient_is_detach(tmp_path):
    trainer = trainer_for(tmp_path, predictors=2, target_encoder="stop_gradient")
    with_targets(trainer, trainer.model)


class Remember(TrainerCallback):
    """The parameters after every optimisation step."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.seen.append({name: value.detach().clone() for name, value in model.named_parameters()})


def trained_and_seen(folder, **options):
    """A float64 trainer after three steps of SGD, its parameters before, and after each step."""
    trainer, remember = trainer_for(folder, predictors=2, **SGD, **options), Remember()
    start = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.add_callback(remember)
    trainer.train()
    trainer.model.eval()
    assert len(remember.seen) == 3
    assert not torch.equal(start["lm_head.weight"], remember.seen[-1]["lm_head.weight"])
    return trainer, start, remember.seen


def loaded(trainer, values):
    other = deepcopy(trainer.model)
    other.load_state_dict(values, strict=False)
    return other


def test_the_twin_is_the_moving_average_written_out(tmp_path):
    trainer, start, (one, two, three) = trained_and_seen(tmp_path, target_encoder="ema", ema_decay=0.6)
    average = {
        name: 0.6**3 * start[name] + 0.4 * (0.6**2 * one[name] + 0.6 * two[name] + three[name]) for name in start
    }
    for name in trainer.jepa.state.target_encoder.names:
        torch.testing.assert_close(
            trainer.jepa.state.target_encoder.get_buffer(name.replace(".", "/")), average[name], rtol=1e-10, atol=1e-12
        )
    assert set(trainer.jepa.state.target_encoder.names) == set(start)
    with_targets(trainer, loaded(trainer, average))


def test_without_decay_the_twin_is_the_model(tmp_path):
    trainer, _, _ = trained_and_seen(tmp_path, target_encoder="ema", ema_decay=0.0)
    with_targets(trainer, trainer.model)


def test_the_twin_starts_as_the_model(tmp_path):
    trainer = trainer_for(tmp_path, predictors=2, target_encoder="ema")
    with_targets(trainer, trainer.model)


def test_a_frozen_target_is_the_first_models(tmp_path):
    trainer, start, _ = trained_and_seen(tmp_path, control="frozen_target")
    with_targets(trainer, loaded(trainer, start))


def test_a_random_target_is_one_direction_per_step_as_long_as_the_view(tmp_path):
    options: dict[str, Any] = {"control": "random_target", "predictors": 2, "pairs": "random", "pairs_per_example": 2}
    trainer = trainer_for(tmp_path, **options)
    seen: dict[tuple[int, int], torch.Tensor] = {}
    for epoch, places in ((0, (0, 1, 2)), (0, (2,)), (1, (1, 0)), (2, (0, 1, 2))):
        trainer.train_dataset.epoch.fill_(epoch)
        batch = batch_of(trainer, places)
        true = trainer.representation.forward(batch).views
        views = trainer.representation.forward.training(batch).views
        assert torch.equal(views.predicted, true.predicted)
        assert not views.target.requires_grad
        torch.testing.assert_close(views.target.norm(dim=-1), true.target.norm(dim=-1))
        for problem, step, direction in zip(views.problem, views.step, unit(views.target), strict=True):
            torch.testing.assert_close(seen.setdefault((int(problem), int(step)), direction), direction)
    directions = torch.stack(list(seen.values()))
    assert len(directions) >= 5
    assert (directions @ directions.T - torch.eye(len(directions))).abs().max() < 0.8


def test_random_targets_follow_the_seed():
    ones, nothing = torch.ones(2, 32), torch.zeros(2, dtype=torch.long)
    views = Views(ones, 3 * ones, nothing, torch.tensor([5, 5]), torch.tensor([1, 2]))
    first, again, other = (random_targets(views, seed).target for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first[0], first[1])
    torch.testing.assert_close(first.norm(dim=-1), torch.full((2,), 3 * 32**0.5))


def test_no_loss_trains_like_plain_fine_tuning(tmp_path):
    plain = trained(tmp_path, objective="none", gamma=1.0)
    silent = trained(tmp_path, control="no_loss", predictors=2, gamma=1.0)
    other = dict(silent.model.named_parameters())
    for name, value in plain.model.named_parameters():
        torch.testing.assert_close(other[name][: len(value)], value, rtol=1e-6, atol=1e-6)
    assert len(history(silent, "jepa_loss")) == 3
    assert min(history(silent, "jepa_loss")) > 0
    assert history(silent) == pytest.approx(history(silent, "lm_loss"), rel=1e-6)


# What is carried from step to step


def test_running_means_do_not_depend_on_the_batching(tmp_path):
    records = [*RECORDS, *[conversation("Say it.", "Say it twice.", f"{n}.", question=f"{n}?") for n in range(4)]]
    kinds = [
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
    ]
    runs = [trained(tmp_path, loss="centred_cosine", max_steps=4, records=records, **kind) for kind in kinds]
    for name in ("loss", "lm_loss", "jepa_loss", "grad_norm"):
        torch.testing.assert_close(*[torch.tensor(history(run, name)) for run in runs], rtol=2e-5, atol=2e-5)
    one, eight = (run.jepa.state.state_dict() for run in runs)
    averages = [name for name in one if name.endswith("average")]
    assert len(averages) == 2
    for name in averages:
        torch.testing.assert_close(eight[name], one[name], rtol=2e-5, atol=2e-5)
        assert one[name].norm() > 0.1


def resumed(folder, **options):
    """An undisturbed run of six steps, and one that goes on from its checkpoint after two."""
    options = {"max_steps": 6, "per_device_train_batch_size": 2, **options}
    whole = trained(folder, save_strategy="steps", save_steps=2, **options)
    again = trainer_for(folder, dtype=torch.float32, **{**SGD, **options})
    again.train(resume_from_checkpoint=str(folder / "out" / "checkpoint-2"))
    return whole, again


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
def test_all_that_is_carried_survives_a_resume(tmp_path, peft_config):
    options = {"loss": "centred_cosine", "target_encoder": "ema", "ema_decay": 0.7, "predictor_head": "linear"}
    whole, again = resumed(
        tmp_path, **options, keep_adapter=peft_config is not None, peft_config=peft_config, optim="adamw_torch"
    )
    assert history(again) == pytest.approx(history(whole), rel=1e-6)
    for undisturbed, resumed_ in ((whole.model, again.model), (whole.jepa.state, again.jepa.state)):
        state = resumed_.state_dict()
        for name, value in undisturbed.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-6, atol=1e-6, msg=name)


# lbd auto


def gradient_norm(model, loss):
    model.zero_grad()
    loss.backward()
    return math.sqrt(sum(value.grad.square().sum().item() for value in model.parameters() if value.grad is not None))


@pytest.mark.parametrize("objective", [["step_jepa"], ["step_jepa", "stp"]])
def test_lbd_auto_brings_the_gradients_to_their_ratio_in_the_first_step(tmp_path, objective):
    options = {"lbd": "auto", "lbd_ratio": 0.25, "objective": objective, "dtype": torch.float64}
    trainer = trained(tmp_path, **options, max_steps=1)  # the one batch holds all rows
    fresh = trainer_for(tmp_path, **options)
    batch = batch_of(fresh, range(4))
    lm_norm, jepa_norm = (gradient_norm(fresh.model, losses_of(fresh, batch)[part]) for part in range(2))
    assert float(trainer.jepa.state.lbd) * jepa_norm / lm_norm == pytest.approx(0.25, rel=1e-4)
    (entry,) = [entry for entry in trainer.state.log_history if "lm_loss" in entry]
    assert entry["loss"] == pytest.approx(GAMMA * entry["lm_loss"] + entry["lbd"] * entry["jepa_loss"], rel=1e-5)


def test_lbd_auto_goes_on_with_the_saved_weight(tmp_path):
    whole, again = resumed(tmp_path, lbd="auto")
    assert len(history(again, "lbd")) == 6
    assert len(set(history(again, "lbd"))) == 1
    assert history(again, "lbd") == history(whole, "lbd")
    assert history(again) == pytest.approx(history(whole), rel=1e-6)


def test_lbd_auto_is_found_although_the_first_step_carries_no_pairs(tmp_path):
    """Otherwise the JEPA loss weighs nothing until the next measurement."""
    seed = next(seed for seed in range(99) if Random(f"{seed} jepa_ratio 0").random() >= 0.5)
    trainer = trained(tmp_path, lbd="auto", jepa_ratio=0.5, seed=seed, max_steps=6)
    carried = [entry["lbd"] for entry in trainer.state.log_history if entry.get("pairs")]
    assert carried
    assert min(carried) > 0


# What is checked before the first step


@pytest.mark.parametrize(
    ("objective", "needed"), [("stp", False), ("stp_released", False), ("ssp", False), ("llm_jepa", True)]
)
def test_only_rows_with_branches_need_a_model_that_takes_their_mask(tmp_path, monkeypatch, objective, needed):
    asked = []
    monkeypatch.setattr("step_jepa.batches.attention.check", lambda model, flat=False: asked.append(flat))
    trainer_for(tmp_path, objective=objective, padding=True)
    assert asked == [False] * needed
    trainer_for(tmp_path, objective=objective)
    assert asked == [False] * needed + [True]  # flat batches ask it of every model: documents must not see each other


def test_a_control_that_changes_nothing_is_counted(tmp_path, caplog):
    same = conversation("One, two.", "One, six.", "One, ten.", question="Steps of one length?")
    with caplog.at_level(logging.WARNING, "step_jepa"):
        trainer_for(tmp_path, records=[*RECORDS, same], control="random_boundaries")
    assert "control random_boundaries leaves 3 of 8 pairs as they are" in caplog.text
    with pytest.raises(UserError, match="shuffled_pairs changes no pair"):  # no other example, no donor
        trainer_for(tmp_path, records=[RECORDS[1]], control="shuffled_pairs")
