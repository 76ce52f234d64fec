"""The engine: calls in, chunks out, one step at a time. No processes and no sockets here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from perilune.engine.cache import BlockCache
from perilune.engine.grammar import Grammars, GrammarState
from perilune.engine.protocol import (
    Chunk,
    EngineOptions,
    Failed,
    Generate,
    Ready,
    Reply,
    Stats,
    Vocabulary,
)
from perilune.engine.runner import Runner
from perilune.engine.sampling import choose
from perilune.engine.scheduler import Scheduler
from perilune.engine.sequence import Sequence, open_sequence
from perilune.engine.sight import Sight
from perilune.errors import ConfigError, PeriluneError
from perilune.model.load import load_model
from perilune.model.load_vision import load_vision
from perilune.model.text import TextDecoder
from perilune.model.vision import Vision

NARROW_LATENT = 256
"""Up to this width the engine chooses small cache blocks: sharing is finer, and a block still a few KB."""
SMALL_MODEL = 20_000_000
"""Parameters below which a second thread costs more in waiting than it computes."""


@dataclass(frozen=True)
class Plan:
    """What was chosen at start."""

    block_size: int
    blocks: int
    max_context: int
    threads: int


class Engine:
    def __init__(
        self,
        model: TextDecoder,
        options: EngineOptions,
        vocabulary: Vocabulary,
        vision: Vision | None = None,
    ) -> None:
        plan = choose_plan(model, options)
        torch.set_num_threads(plan.threads)
        config = model.config
        if len(vocabulary.tokens) > config.vocab_size:
            raise ConfigError(
                f"has {len(vocabulary.tokens)} tokens, the model {config.vocab_size}",
                field="vocabulary",
                mend="use the tokenizer that came with the checkpoint",
            )
        self._vocab_size = config.vocab_size
        self._max_context = plan.max_context
        self._cache = BlockCache(plan.blocks, plan.block_size)
        self._scheduler = Scheduler(self._cache, options.max_batch_tokens, options.max_sequences)
        self.sight = Sight(vision)
        self._runner = Runner(
            model, plan.blocks, plan.block_size, self.sight, deterministic=options.deterministic
        )
        # Without token bytes (the tests of everything else) there are no grammars.
        has_bytes = bool(vocabulary.tokens)
        self._grammars = Grammars(vocabulary, config.vocab_size, plan.threads) if has_bytes else None
        self._sequences: dict[int, Sequence] = {}
        self._tokens_generated = 0
        self.ready = Ready(
            vocab_size=config.vocab_size,
            max_context=plan.max_context,
            block_size=plan.block_size,
            checkpoint_hash=model.content_hash,
            notes=(
                f"{options.dtype} on the CPU, {plan.threads} thread{'s' * (plan.threads > 1)}",
                f"latent cache of {plan.blocks * plan.block_size} tokens in blocks of {plan.block_size}",
                "plain PyTorch kernels, absorbed latent attention",
                *(("routed experts stay in their files",) if model.experts_in_files else ()),
                *(("deterministic: fixed tiles",) if options.deterministic else ()),
                *(("images and video",) if vision else ()),
            ),
        )

    @classmethod
    def load(cls, options: EngineOptions, vocabulary: Vocabulary) -> Engine:
        """Raises CheckpointError or ConfigError."""
        dtype = torch.bfloat16 if options.dtype == "bfloat16" else torch.float32
        folder = Path(options.checkpoint)
        model = load_model(folder, dtype, experts=options.experts)
        return cls(model, options, vocabulary, load_vision(folder, dtype))

    @property
    def busy(self) -> bool:
        return bool(self._sequences)

    def submit(self, call: Generate) -> list[Reply]:
        """Queue a call; a reply only if it is refused at once."""
        try:
            lengths = self.sight.check(call)
            sequence = open_sequence(call, self._vocab_size, self._max_context, lengths)
            if call.grammar is not None:
                sequence.grammar = self._start_grammar(call.grammar, call.grammar_after_id)
        except PeriluneError as error:
            return [_failed(call.id, error)]
        self._sequences[call.id] = sequence
        self._scheduler.add(sequence)
        return []

    def abort(self, id: int) -> list[Reply]:
        """End a call wherever it stands; nothing if it ended already."""
        if id not in self._sequences:
            return []
        return [self._end(self._sequences[id], (), "aborted")]

    def step(self) -> list[Reply]:
        """Compute once and sample every sequence that is ready."""
        step = self._scheduler.plan()
        if not step.parts:
            return []
        sampling = [part.sequence for part in step.parts if part.samples]
        logits = self._runner.run(step)
        self._scheduler.done(step)
        replies = []
        if sampling:
            with torch.inference_mode():
                chosen = choose(logits, sampling, self._grammars)
            for sequence, token in zip(sampling, chosen, strict=True):
                replies.append(self._advance(sequence, token))
        return replies

    def stats(self) -> Stats:
        """Counters, after checking the books. Raises EngineError when they are wrong."""
        running = self._scheduler.running
        self._cache.check([sequence.blocks for sequence in running])
        return Stats(
            running=len(running),
            waiting=len(self._scheduler.waiting) + len(self._scheduler.preempted),
            blocks_total=self._cache.blocks,
            blocks_free=self._cache.free,
            blocks_cached=self._cache.cached,
            blocks_used=self._cache.blocks - self._cache.available,
            tokens_prefilled=self._scheduler.tokens_prefilled,
            tokens_from_cache=self._scheduler.tokens_from_cache,
            tokens_generated=self._tokens_generated,
            preemptions=self._scheduler.preemptions,
        )

    def _advance(self, sequence: Sequence, token: int | PeriluneError) -> Reply:
        """Append what was sampled; ends the sequence when it stops there."""
        if isinstance(token, PeriluneError):
            return self._fail(sequence, token)
        new = [token]
        stopped = token in sequence.stop_ids
        state = sequence.grammar
        if state is not None and not stopped:
            try:
                state.accept(token)
            except PeriluneError as error:
                return self._fail(sequence, error)
            if state.complete:
                stopped, new = self._close_grammar(sequence, token)
        sequence.tokens += new
        self._tokens_generated += len(new)
        if stopped:
            return self._end(sequence, tuple(new), "stop")
        if sequence.generated >= sequence.call.max_tokens:
            return self._end(sequence, tuple(new), "length")
        return self._chunk(sequence, tuple(new), None)

    def _close_grammar(self, sequence: Sequence, token: int) -> tuple[bool, list[int]]:
        """A complete grammar allows the end only, so the end is not computed: (stopped, new tokens)."""
        assert self._grammars is not None
        eos = self._grammars.eos_id
        if token == eos:
            return True, [token]
        if sequence.generated + 2 > sequence.call.max_tokens:
            return False, [token]
        return True, [token, eos]

    def _start_grammar(self, grammar: str, after_id: int | None) -> GrammarState:
        if self._grammars is None:
            raise ConfigError(
                "grammars need the bytes of the tokens", field="vocabulary", mend="start the engine with them"
            )
        return self._grammars.start(grammar, after_id)

    def _chunk(self, sequence: Sequence, tokens: tuple[int, ...], finish: str | None) -> Chunk:
        first = not sequence.announced
        sequence.announced = True
        return Chunk(
            id=sequence.call.id,
            token_ids=tokens,
            finish=finish,  # type: ignore[arg-type]
            prompt_tokens=len(sequence.call.prompt) if first else 0,
            cached_tokens=(sequence.cached_tokens or 0) if first else 0,
        )

    def _end(self, sequence: Sequence, tokens: tuple[int, ...], finish: str) -> Reply:
        del self._sequences[sequence.call.id]
        self._scheduler.remove(sequence)
        return self._chunk(sequence, tokens, finish)

    def _fail(self, sequence: Sequence, error: PeriluneError) -> Reply:
        del self._sequences[sequence.call.id]
        self._scheduler.remove(sequence, spoilt=True)
        return _failed(sequence.call.id, error)


def choose_plan(model: TextDecoder, options: EngineOptions) -> Plan:
    """Fill in what the options leave open. Raises ConfigError."""
    if options.deterministic and options.dtype != "float32":
        raise ConfigError(
            "needs dtype float32", field="deterministic", mend="leave dtype out, or turn deterministic off"
        )
    config = model.config
    size = options.block_size or (8 if config.latent_width <= NARROW_LATENT else 16)
    blocks = options.cache_tokens // size
    if blocks < 1:
        raise ConfigError(
            f"{options.cache_tokens} is less than one block of {size}", field="cache_tokens", mend="raise it"
        )
    longest = min(config.max_position_embeddings, options.max_context or config.max_position_embeddings)
    small = sum(parameter.numel() for parameter in model.parameters()) < SMALL_MODEL
    threads = options.threads or (1 if small else torch.get_num_threads())
    return Plan(size, blocks, min(longest, blocks * size), threads)


def _failed(id: int, error: PeriluneError) -> Failed:
    return Failed(id=id, code=error.code, message=error.message, field=error.field, mend=error.mend)
