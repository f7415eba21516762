"""Prompts in, completions out: one prefill, then one token per row and step.

All prompts of a call, and all completions of each, are slots of one cache and rows of one flat
pass. A row that is finished leaves; nothing is padded.
"""

import time
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gemsmith.errors import CheckpointError, MemoryLimitError
from gemsmith.infer.completion import Completion, FinishReason
from gemsmith.infer.device import decode_threads, threads
from gemsmith.infer.noise import completion_streams
from gemsmith.infer.penalties import History
from gemsmith.infer.sample import Picker, logprobs_of, top_logprobs
from gemsmith.infer.settings import Settings
from gemsmith.infer.text import TextWriter
from gemsmith.kernels.large_pages import settle
from gemsmith.model.cache import KVCache, cache_bytes
from gemsmith.model.decoding import decode_step
from gemsmith.model.deltas import CurrentStep
from gemsmith.model.layout import Layout
from gemsmith.model.transformer import Transformer
from gemsmith.tokenizer import Tokenizer
from gemsmith.weights.memory import available_bytes, in_gb

PREFILL_CHUNK = 512  # tokens of one pass; also the slack of the cache's rings


class Row:
    """One completion being written."""

    def __init__(self, prompt: Sequence[int], *, slot: int, index: int, limit: int, writer: TextWriter) -> None:
        self.prompt, self.slot, self.index, self.limit = prompt, slot, index, limit
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.top_logprobs: list[tuple[tuple[int, float], ...]] = []
        self.n_cached = 0
        self.finish_reason: FinishReason | None = None
        self.ttft_s: float | None = None
        self.total_s = 0.0
        self._writer = writer
        self._pieces: list[str] = []
        self._n_taken = 0

    @property
    def position(self) -> int:
        """Absolute position of the token to be chosen next."""
        return len(self.prompt) + len(self.token_ids)

    def add(self, token_id: int, stop_ids: frozenset[int]) -> None:
        """Append a token, and finish where it is the last."""
        self.token_ids.append(token_id)
        if token_id in stop_ids:
            self.finish("stop")
            return
        self._pieces.append(self._writer.push(token_id))
        if self._writer.is_stopped:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.limit:
            self.finish("length")

    def finish(self, reason: FinishReason) -> None:
        """End the completion and show the text that was kept back."""
        self._pieces.append(self._writer.finish())
        self.finish_reason = "stop" if self._writer.is_stopped else reason

    def take(self) -> str:
        """Return the text written since the last call."""
        fresh = "".join(self._pieces[self._n_taken :])
        self._n_taken = len(self._pieces)
        return fresh

    def completion(self, settings: Settings) -> Completion:
        """Return the completion as it stands; one that is not finished counts as cancelled."""
        assert settings.sampling.seed is not None
        n = len(self.token_ids)
        return Completion(
            text="".join(self._pieces),
            token_ids=tuple(self.token_ids),
            finish_reason=self.finish_reason or "cancelled",
            n_prompt_tokens=len(self.prompt),
            n_cached_tokens=self.n_cached,
            index=self.index,
            seed=settings.sampling.seed,
            # An interrupt may come after those of a token and before the token itself.
            logprobs=None if settings.top_logprobs is None else tuple(self.logprobs[:n]),
            top_logprobs=None if settings.top_logprobs is None else tuple(self.top_logprobs[:n]),
            ttft_s=self.ttft_s,
            total_s=self.total_s,
        )


class Generation:
    """One call of generate: its cache, and its rows in the order (prompt, completion).

    Args:
        prompts: Compiled ids, each shorter than the model's context.
        cache_dtype: What keys and values are kept in, the network's dtype by default.
    """

    def __init__(
        self,
        network: Transformer,
        tokenizer: Tokenizer,
        *,
        prompts: Sequence[Sequence[int]],
        settings: Settings,
        cache_dtype: torch.dtype | None = None,
    ) -> None:
        self._started = time.perf_counter()
        self.network, self.settings, self.n_pieces = network, settings, tokenizer.vocab_size
        self.rows: list[Row] = []
        for prompt in prompts:
            limit = min(settings.max_new_tokens, network.config.max_seq_len - len(prompt))
            for index in range(settings.first_index, settings.first_index + settings.n):
                writer = TextWriter(tokenizer.decoder(), settings.stop)
                self.rows.append(Row(prompt, slot=len(self.rows), index=index, limit=limit, writer=writer))
        self.live = list(self.rows)
        self._device = network.device
        self._streams = completion_streams(
            settings.sampling.seed or 0, torch.tensor([row.index for row in self.rows]), device=self._device
        )
        self._picker = Picker(settings.sampling)
        self._history: History | None = None
        self._cache: KVCache | None = None
        self._cache_dtype = cache_dtype or network.dtype
        self._compiled: CurrentStep | None = None
        self._n_threads = decode_threads(network)

    def run(self) -> list[Completion]:
        """Write all rows to their end."""
        while self.live:
            self.step()
        return [row.completion(self.settings) for row in self.rows]

    @torch.inference_mode()
    def step(self) -> None:
        """Choose one token for every live row; the first step reads the prompts.

        An error or an interrupt ends all of them: the cache may hold half a pass.
        """
        try:
            self._advance()
        except BaseException:
            self.cancel()
            raise

    def _advance(self) -> None:
        if self.settings.is_cancelled():
            return self.cancel()
        logits = self._prefill() if self._cache is None else self._decode()
        if logits is None:
            return self.cancel()
        positions = torch.tensor([row.position for row in self.live], device=self._device)
        token_ids = self._picker.pick(
            logits[:, : self.n_pieces], streams=self._streams, positions=positions, history=self._history
        )
        self._report(logits, token_ids)
        if self._history is not None:
            self._history.add(token_ids)
        now = time.perf_counter() - self._started
        for row, token_id in zip(self.live, token_ids.tolist(), strict=True):
            row.ttft_s, row.total_s = now if row.ttft_s is None else row.ttft_s, now
            row.add(token_id, self.settings.stop_ids)
        return self._drop_finished()

    @torch.inference_mode()
    def read(self) -> KVCache:
        """Read the prompts, write nothing, and return the cache that holds them."""
        cache = self._make_cache()
        self._read(cache)
        return cache

    def cancel(self) -> None:
        """End every live row where it stands and free the cache."""
        for row in self.live:
            if row.finish_reason is None:
                row.finish("cancelled")
        self.live = []
        self._cache = self._history = self._compiled = None

    def _prefill(self) -> Float[Tensor, "B V"] | None:
        """Read the prompts, make ready to write, and return the logits of each row, None when cancelled."""
        n = self.settings.n
        cache = self._make_cache()
        logits = self._read(cache)
        if logits is None:
            return None
        for row in self.rows:
            if row.slot % n:
                cache.copy_slot(row.slot - row.slot % n, row.slot)
        self._compiled = self._step(cache)
        if self.settings.sampling.has_penalties:
            self._history = History([row.prompt for row in self.rows], self.n_pieces, device=self._device)
        self._cache = cache
        return logits.repeat_interleave(n, 0)

    def _read(self, cache: KVCache) -> Float[Tensor, "P V"] | None:
        """Read every prompt once and return the logits of its first new token, None when cancelled."""
        n = self.settings.n
        prompts = [row.prompt for row in self.rows[::n]]
        last: dict[int, Tensor] = {}
        self._resume(cache)
        starts = [row.n_cached for row in self.rows[::n]]
        for passage in _passes([len(prompt) for prompt in prompts], PREFILL_CHUNK, starts=starts):
            if self.settings.is_cancelled():
                return None
            token_ids = [i for index, start, stop in passage for i in prompts[index][start:stop]]
            layout = Layout.packed(
                [stop - start for _, start, stop in passage],
                starts=[start for _, start, _ in passage],
                slots=[index * n for index, _, _ in passage],
                device=self._device,
            )
            hidden = self.network.hidden(torch.tensor(token_ids, device=self._device), layout, cache=cache)
            for (index, _, stop), segment in zip(passage, layout.segments, strict=True):
                if stop == len(prompts[index]):
                    last[index] = hidden[segment.stop - 1].clone()
        logits = self.network.logits(torch.stack([last[index] for index in range(len(prompts))]))
        _check_finite(logits)
        return logits

    def _step(self, cache: KVCache) -> CurrentStep | None:
        """Return the compiled step, which finds out by itself how many threads serve it best."""
        n_threads = torch.get_num_threads()
        # One of two or three cores cannot read a large model as fast as all of them.
        half = n_threads // 2 if n_threads >= 4 else None
        fewer = 1 if self._n_threads < n_threads else half
        return decode_step(self.network, cache, n_threads=n_threads, fewer=fewer)

    def _resume(self, cache: KVCache) -> None:
        """Take from the prompt that was read before what each prompt shares with it."""
        known = self.settings.prompt_cache
        if known is None:
            return
        known.check_weights()  # again, for a stream may be asked for its first piece long after the call
        for row in self.rows:
            row.n_cached = known.n_shared(row.prompt)
            if row.n_cached and row.slot % self.settings.n == 0:
                known.fill(cache, row.n_cached, slot=row.slot)

    def _decode(self) -> Float[Tensor, "B V"]:
        """Read the token each live row chose last."""
        token_ids = [row.token_ids[-1] for row in self.live]
        positions, slots = [row.position - 1 for row in self.live], [row.slot for row in self.live]
        assert self._cache is not None
        compiled = None if self._compiled is None else self._compiled.get()
        if compiled is not None:
            for slot, position in zip(slots, positions, strict=True):
                self._cache.reserve(slot, position, 1)
            return compiled(token_ids, positions, slots)
        layout = Layout.packed([1] * len(slots), starts=positions, slots=slots, device=self._device)
        ids = torch.tensor(token_ids, device=self._device)
        with threads(self._n_threads):
            return self.network.logits(self.network.hidden(ids, layout, cache=self._cache))

    def _report(self, logits: Tensor, token_ids: Tensor) -> None:
        """Note the log-probabilities of the chosen tokens and of their alternatives."""
        n = self.settings.top_logprobs
        if n is None:
            return
        chosen = logprobs_of(logits, token_ids).tolist()
        values, alternatives = (x.tolist() for x in top_logprobs(logits, n, n_pieces=self.n_pieces))
        for row, logprob, ids, best in zip(self.live, chosen, alternatives, values, strict=True):
            row.logprobs.append(logprob)
            row.top_logprobs.append(tuple(zip(ids, best, strict=True)))

    def _drop_finished(self) -> None:
        kept = [place for place, row in enumerate(self.live) if row.finish_reason is None]
        if len(kept) == len(self.live):
            return
        self.live = [self.live[place] for place in kept]
        rows = torch.tensor(kept, dtype=torch.long, device=self._device)
        self._streams = self._streams[rows]
        if self._history is not None:
            self._history.keep(rows)
        if not self.live:
            self._cache = self._history = self._compiled = None

    def _make_cache(self) -> KVCache:
        """Return a cache for what this call can need, not for the longest context there is."""
        config, dtype = self.network.config, self._cache_dtype
        capacity = max(len(row.prompt) + row.limit for row in self.rows)
        needed = cache_bytes(config, capacity, n_slots=len(self.rows), slack=PREFILL_CHUNK, dtype=dtype)
        free = available_bytes(str(self._device))
        if needed > free:
            raise MemoryLimitError(
                f"the cache of {len(self.rows)} x {capacity} tokens must fit into memory; got {in_gb(needed)} needed "
                f"and {in_gb(free)} free on {self._device}. Ask for fewer completions or a smaller max_new_tokens."
            )
        cache = KVCache(
            config,
            n_slots=len(self.rows),
            capacity=capacity,
            slack=PREFILL_CHUNK,
            dtype=dtype,
            device=self._device,
        )
        longest = max(len(row.prompt) for row in self.rows)
        if 2 * longest >= capacity:  # most of it will be written, and read for every token
            settle(x for layers in cache.stores.values() for x in layers.values())
        return cache


def _passes(lengths: Sequence[int], size: int, *, starts: Sequence[int]) -> Iterator[list[tuple[int, int, int]]]:
    """Fill passes of `size` tokens with prompts laid end to end: (prompt, start, stop) of each piece."""
    passage, room = [], size
    for index, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        while start < length:
            stop = min(length, start + room)
            passage.append((index, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield passage
                passage, room = [], size
    if passage:
        yield passage


def _check_finite(logits: Float[Tensor, "P V"]) -> None:
    """Refuse a network that cannot compute, before its first token."""
    if not bool(logits.isfinite().all()):
        bad = logits[~logits.isfinite()][0].item()
        raise CheckpointError(
            f"logits must be finite; got {bad} after the prompt. The weights are damaged, or their dtype overflows: "
            "load the model with dtype='float32'."
        )
