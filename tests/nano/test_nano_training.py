from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from nano.corpus import Corpus, Record  # noqa: E402
from nano.optimiser import orthogonalised  # noqa: E402
from nano.publish import gather, publish  # noqa: E402
from nano.shape import config_for  # noqa: E402
from nano.train import Trainer  # noqa: E402
from nano.wiring import initialise  # noqa: E402

from nano import merges  # noqa: E402
from perilune.chat.tokenizer import Tokenizer  # noqa: E402
from perilune.model.attention import CausalAttention  # noqa: E402
from perilune.model.content_hash import content_hash  # noqa: E402
from perilune.model.load import load_model  # noqa: E402
from perilune.model.text import TextDecoder  # noqa: E402
from perilune.model.tiny import write_tokenizer  # noqa: E402

WORDS = ("orbit", "state", "vector", "moon", "phase", "table", "edge", "node", "path", "load")
NAMES = tuple(f"{a}_{b}" for a in WORDS for b in WORDS)
RECORDS = (Record("pkg/two.py", "load", ((1, "def load(path, count=1):"),)),)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    write_tokenizer(merges.learn([" ".join(NAMES)], merges.protocol_texts(), 340), tmp_path / "tokenizer")
    corpus = Corpus(RECORDS, RECORDS, NAMES, NAMES, WORDS, WORDS, ("a/b.py",), ("a/b.py",))
    (tmp_path / "corpus.msgpack").write_bytes(msgspec.msgpack.encode(corpus))
    return tmp_path


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def trainer(work: Path) -> Trainer:
    options = argparse.Namespace(
        rank=0, ranks=1, work=work, tokens=1e9, minutes=1e6, save_seconds=1e9, seed=1
    )
    return Trainer(options)


def test_the_wired_model_copies_before_it_has_learnt(work: Path) -> None:
    torch.set_num_threads(1)
    tokenizer = Tokenizer.load(work / "tokenizer")
    decoder = TextDecoder(config_for(tokenizer))
    initialise(decoder)
    rows, length = 8, 12
    torch.manual_seed(0)
    strings = torch.randint(0, 340, (rows, length))
    mark = torch.full((rows, 1), tokenizer.special("<|im_end|>"))
    tokens = torch.cat([mark, strings, mark, strings], dim=1)
    count = tokens.shape[1]
    with torch.no_grad():
        hidden = decoder(tokens.flatten(), torch.arange(count).repeat(rows), CausalAttention(rows, count))
        guesses = decoder.logits(hidden).view(rows, count, -1)[:, -length:-1].argmax(-1)
    assert float((guesses == strings[:, 1:]).float().mean()) > 0.5


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((2, 32, 32), (48, 16), (16, 48)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape)))
        assert float(values.min()) > 0.3 and float(values.max()) < 1.4


def test_training_learns_resumes_where_it_was_and_publishes_what_it_trained(
    work: Path, one_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nano.batches.POOL", 1)
    monkeypatch.setattr("nano.batches.TOKENS", 512)
    first = trainer(work)
    losses = []
    for _ in range(4):
        losses.append(first._step()[1])
        first._advance(512, 1.0)
    assert losses[-1] < losses[0] - 0.3
    first.save()
    second = trainer(work)
    assert second.progress == first.progress
    for mine, other in zip(first.decoder.parameters(), second.decoder.parameters(), strict=True):
        assert torch.equal(mine, other)
    state, progress = gather(work)
    assert progress["step"] == 4 and set(state) == set(first.decoder.state_dict())
    document = publish(work, work / "checkpoint")
    assert document["content_hash"] == content_hash(work / "checkpoint")
    published = load_model(work / "checkpoint")
    experts = published.model.layers[1].mlp.experts
    first._optimiser.int4_group = 32
    first._optimiser.publish()
    trained = first.decoder.model.layers[1].mlp.experts
    assert torch.equal(experts.gate_up_proj, trained.gate_up_proj.float()), "INT4 as the training saw it"
