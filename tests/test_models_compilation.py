"""Compiled layers: the same numbers and gradients, few programs, one for other image sizes, copies and pickles."""

import copy
import pickle

import pytest
import torch

from evad.models.compilation import LAYERS, RECOMPILE_LIMIT, compile_layers
from evad.models.criterion import SetCriterion
from evad.models.encoder import EncoderBlock
from evad.models.pruning import KeyframePruning
from evad.models.tokens import Tokens
from evad.runs.build import build_model
from tests.conftest import compose_tiny, randomise


class CountingBackend:
    """Runs what torch.compile captured as it is, and counts its programs."""

    def __init__(self):
        self.programs = 0

    def __call__(self, graph, _):
        self.programs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def forget_programs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def pair(*overrides, **options):
    """A tiny detector as it is, and compiled."""
    torch.manual_seed(0)
    plain = build_model(compose_tiny(*overrides))
    randomise(plain, 0)
    compiled = copy.deepcopy(plain)
    compile_layers(compiled, **options)
    return plain, compiled


def loss_of(model, batch):
    torch.manual_seed(1)  # the same paths dropped
    losses = SetCriterion()(model(batch.clips.float(), batch.sizes), batch.targets, batch.sizes)
    return torch.cat([losses.person, losses.l1, losses.giou, losses.action]).mean()


ENCODER_DROPPING = "model.net.encoder.drop_path=0.3"
DROPPING = (ENCODER_DROPPING, "model.decoder_drop_path=0.3")
WOO = (ENCODER_DROPPING, "model/classifier=woo", "model.activation_checkpointing=true")


@pytest.mark.slow
@pytest.mark.parametrize("options", [DROPPING, WOO])
def test_losses_and_gradients_are_those_of_the_plain_detector(options, tiny_batch):
    batch = tiny_batch()
    plain, compiled = pair(*options, backend="aot_eager")
    ours, theirs = loss_of(compiled, batch), loss_of(plain, batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    ours.backward()
    theirs.backward()
    for (name, parameter), other in zip(compiled.named_parameters(), plain.parameters()):
        if other.grad is None:
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_layers_share_programs_also_between_image_sizes(tiny_batch):
    backend = CountingBackend()
    _, compiled = pair("model.keep_rate=1", *DROPPING, backend=backend)
    layers = [module for module in compiled.modules() if isinstance(module, LAYERS)]
    assert len(layers) == 6 + 3 + 2
    batch = tiny_batch()
    loss_of(compiled, batch)
    first = backend.programs
    # Blocks of the encoder are cut in three by the two dropped paths, also those of the decoder, of which the last has
    # a form of its own; the two localization heads see different gradients of their queries.
    assert first <= 3 + 6 + 2
    clips = batch.clips.float()
    wider = torch.cat([clips, clips], dim=4)
    compiled(wider, batch.sizes)  # dynamic shapes from here on
    second = backend.programs
    compiled(torch.cat([clips, wider], dim=4), batch.sizes)
    compiled(torch.cat([wider, wider], dim=4), batch.sizes)
    assert backend.programs == second


@pytest.mark.slow
def test_training_and_evaluation_of_ragged_batches_stay_compiled(tiny_batch, monkeypatch):
    """Pruning, several widths, a last batch of one clip, evaluation: more versions than torch allows by default."""
    _, compiled = pair(*DROPPING, backend=CountingBackend())
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    batch = tiny_batch()
    clips = batch.clips.float()
    wide = torch.cat([clips, clips], dim=4)
    for shown in (clips, wide, torch.cat([clips, wide], dim=4), clips[:1]):
        compiled.train()(shown, batch.sizes[: len(shown)])
    with torch.no_grad():
        for shown in (clips, wide, clips[:1]):
            compiled.eval()(shown, batch.sizes[: len(shown)])


def test_only_options_that_every_torch_knows_are_passed(monkeypatch):
    """Before 2.12 torch.compile has no recompile_limit; the setting of that name is raised, never lowered."""
    passed = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: passed.append(options))
    for before, after in ((8, RECOMPILE_LIMIT), (100, 100)):
        with torch._dynamo.config.patch(recompile_limit=before):
            compile_layers(block(), backend="eager")
            assert torch._dynamo.config.recompile_limit == after
    assert passed == [{"backend": "eager"}] * 2


def block(heads=3):
    torch.manual_seed(0)
    return EncoderBlock(24, heads, drop_path=0.3, pruning=KeyframePruning(0.8))


def tokens():
    return Tokens.from_grid(torch.randn(2, 96, 24, generator=torch.Generator().manual_seed(0)), (4, 4, 6))


def test_rows_of_pruning_are_not_unrolled():
    """However many heads there are."""
    counts = []
    for heads in (3, 6):
        backend = CountingBackend()
        torch._dynamo.reset()
        compiled = block(heads).eval()
        compile_layers(compiled, backend=backend)
        compiled(tokens())
        counts.append(backend.programs)
    assert counts[0] == counts[1]


def test_compiled_blocks_are_saved_copied_and_pickled_as_plain_ones():
    compiled = block()
    compile_layers(compiled, backend="eager")
    compiled(tokens())  # with dropped paths
    assert list(compiled.state_dict()) == list(block().state_dict())
    expected = block().eval()(tokens()).x
    for twin in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        torch.testing.assert_close(twin.eval()(tokens()).x, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_inductor_gives_the_same_tokens():
    compiled = block().eval()
    compile_layers(compiled)
    with torch.inference_mode():
        ours, theirs = compiled(tokens()), block().eval()(tokens())
    torch.testing.assert_close(ours.x, theirs.x, rtol=1e-4, atol=1e-5)
    assert torch.equal(ours.position, theirs.position)
