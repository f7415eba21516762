"""LM: a network, its tokenizer and its manners, ready to write, answer and score."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Unpack, overload

import torch

from gemsmith.chat import ChatIds, Turn, compile_chat, stop_ids
from gemsmith.config import ModelConfig
from gemsmith.errors import CacheError, PromptError
from gemsmith.infer.completion import Completion, Score
from gemsmith.infer.device import choose_cache_dtype
from gemsmith.infer.generate import Generation
from gemsmith.infer.prompt import Prompt, check_room, checked_ids, is_single, prompt_ids, text_ids
from gemsmith.infer.prompt_cache import PromptCache, load_prompt
from gemsmith.infer.sample import Sampling
from gemsmith.infer.score import sequence_logprobs
from gemsmith.infer.settings import Options, Settings, gather
from gemsmith.model.transformer import Transformer
from gemsmith.tokenizer import Tokenizer
from gemsmith.weights.folder import save_folder

# What Gemma's publisher suggests where a folder says nothing: Gemma 3 generation_config.json.
GEMMA_SAMPLING = Sampling(temperature=1.0, top_k=64, top_p=0.95)


class LM:
    """A language model.

    Attributes:
        network: Plain torch module, Int[B T] -> logits Float[B T V].
        name: What it was loaded as.
        sampling: How tokens are chosen where a call does not say.
        stop_ids: Ids that end a completion: end of text and end of turn.
        cache_dtype: What keys and values are kept in while it writes and scores; None for its own dtype.
    """

    def __init__(
        self,
        network: Transformer,
        tokenizer: Tokenizer,
        *,
        name: str = "model",
        sampling: Sampling = GEMMA_SAMPLING,
        cache_dtype: torch.dtype | str | None = None,
    ) -> None:
        """Join a network and its tokenizer.

        Raises:
            TokenizerError: They do not belong together.
            ConfigError: Caches cannot be kept in that dtype.
        """
        tokenizer.check_against(network.config)
        self.network, self.tokenizer, self.name, self.sampling = network.eval(), tokenizer, name, sampling
        self.stop_ids = stop_ids(tokenizer, network.config)
        self.cache_dtype = choose_cache_dtype(cache_dtype)

    def __repr__(self) -> str:
        millions = self.config.n_params / 1e6
        return f"LM({self.name!r}, {millions:,.1f}M parameters, {self.dtype}, {self.device})"

    @property
    def config(self) -> ModelConfig:
        """What the network is made of."""
        return self.network.config

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters."""
        return self.network.dtype

    @overload
    def generate(self, prompt: Prompt, *, n: None = None, **options: Unpack[Options]) -> Completion: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def generate(self, prompt: Prompt, *, n: int, **options: Unpack[Options]) -> list[Completion]: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def generate(self, prompt: Sequence[Prompt], *, n: None = None, **options: Unpack[Options]) -> list[Completion]: ...
    @overload
    def generate(self, prompt: Sequence[Prompt], *, n: int, **options: Unpack[Options]) -> list[list[Completion]]: ...
    def generate(
        self, prompt: Prompt | Sequence[Prompt], *, n: int | None = None, **options: Unpack[Options]
    ) -> Completion | list[Completion] | list[list[Completion]]:
        """Continue a text, answer a conversation, or do so for several prompts at once.

        Args:
            prompt: Text (BOS is added), a list of Turn, a list of token ids (taken as they are), or
                a list of such prompts.
            n: Completions of each prompt, which is read once for all; the answer is then a list per prompt.
            options: max_new_tokens (256, or to the end of the context where that is nearer);
                sampling, a Sampling, and temperature, top_k, top_p, seed to change it by; stop,
                strings that end the text; stop_ids, ids that do, beside the model's own;
                top_logprobs, how many alternatives to report per token (0: the chosen one only);
                prompt_cache, a prompt that was read before;
                cancel, a threading.Event or a function that says when to give up; first_index, to
                write completion 3 of a seed again without those before it.

        Raises:
            PromptError: A prompt is empty or too long for the context.
            SamplingError: A setting is outside its range.
            CacheError: `prompt_cache` is of another model, or of before this one's weights or adapters changed.
        """
        if is_single(prompt):
            found = self._generation([prompt], n, options).run()  # pyright: ignore[reportArgumentType]
            return found[0] if n is None else found
        found = self._generation(prompt, n, options).run()  # pyright: ignore[reportArgumentType]
        return found if n is None else [found[i : i + n] for i in range(0, len(found), n)]

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> "TextStream":
        """Continue a text or answer a conversation, piece by piece.

        Takes the keywords of `generate`. Checks them, and the prompt, at once; reads the prompt when
        the first piece is asked for.

        Returns:
            An iterator over pieces of text; its `completion` tells the rest, its `cancel()` stops it.
        """
        return TextStream(self._generation([prompt], None, options))

    def read_prompt(self, prompt: Prompt, *, prompt_cache: PromptCache | None = None) -> PromptCache:
        """Read a prompt once; `prompt_cache=` of generate and stream goes on from it, whole or in part.

        `save_prompt` keeps it in a file.

        Args:
            prompt_cache: One that was read before and may share its beginning.

        Raises:
            PromptError: The prompt is empty or leaves no room in the context.
        """
        generation = self._generation([prompt], None, {"max_new_tokens": 1, "prompt_cache": prompt_cache})
        cache = generation.read()
        return PromptCache.of(cache, generation.rows[0].prompt, network=self.network)

    def save_prompt(self, prompt_cache: PromptCache, path: str | Path) -> Path:
        """Write a prompt that was read to a file, whole or not at all; return its path.

        Raises:
            CacheError: The model has been changed since it was read.
            StorageError: The disk is full or not writable, or the place holds something else.
        """
        return prompt_cache.save(path, self.tokenizer)

    def load_prompt(self, path: str | Path) -> PromptCache:
        """Return a prompt that `save_prompt` wrote.

        Raises:
            CacheError: It is no such file, is damaged, or belongs to another model, adapter or template.
        """
        return load_prompt(path, network=self.network, tokenizer=self.tokenizer)

    def _generation(self, prompts: Sequence[Prompt], n: int | None, options: Options) -> Generation:
        settings = gather(
            options,
            n=1 if n is None else n,
            default=self.sampling,
            stop_ids=self.stop_ids,
            n_pieces=self.tokenizer.vocab_size,
        )
        known = settings.prompt_cache
        if known is not None and known.network is not self.network:
            raise CacheError(
                f"prompt_cache must come from this model, {self.name!r}; got one of another. Make it with this one's "
                "read_prompt or load_prompt."
            )
        if known is not None:
            known.check_weights()
        compiled = [prompt_ids(prompt, self.tokenizer, self.config) for prompt in prompts]
        return Generation(
            self.network, self.tokenizer, prompts=compiled, settings=settings, cache_dtype=self.cache_dtype
        )

    def score(self, text: Prompt) -> Score:
        """Return how probable the model finds a text, its own turns of a conversation, or given ids.

        Probabilities are the model's own, over the whole vocabulary. Of a text and of ids every
        token but the first is scored.

        Raises:
            PromptError: It is empty, too long, or a conversation without a turn of the model.
        """
        if isinstance(text, str):
            token_ids = text_ids(text, self.tokenizer)
            places, n_bytes = range(1, len(token_ids)), len(text.encode())
        elif text and all(isinstance(turn, Turn) for turn in text):
            chat = self.chat_ids([turn for turn in text if isinstance(turn, Turn)])
            token_ids, n_bytes = chat.token_ids, None
            places = [place for place, is_scored in enumerate(chat.loss_mask) if is_scored]
        else:
            token_ids, n_bytes = checked_ids(text, self.config.vocab_size), None
            places = range(1, len(token_ids))
        if not places:
            raise PromptError(
                f"text must hold something to score; got {text!r}. Give two ids or more, or a turn of the model."
            )
        check_room(token_ids, self.config, n_new=0)
        logprobs = sequence_logprobs(self.network, token_ids, places, cache_dtype=self.cache_dtype)
        return Score(tuple(token_ids), tuple(places), tuple(logprobs), n_bytes)

    def chat_ids(self, turns: Sequence[Turn]) -> ChatIds:
        """Return ids and loss mask of a whole conversation, as it is trained on."""
        return compile_chat(turns, self.tokenizer, family=self.config.family)

    def save(self, folder: str | Path) -> Path:
        """Write one folder that loads as this model: weights, configuration, tokenizer, manifest.

        Raises:
            StorageError: The disk is full or not writable; what was there before is unchanged.
        """
        words = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        suggested = {word: getattr(self.sampling, word) for word in words}
        generation = {**suggested, "top_k": self.sampling.top_k or 0}
        return save_folder(folder, self.network, tokenizer=self.tokenizer, generation=generation)


class TextStream:
    """Pieces of one completion as they are written.

    Leaving early (`cancel()`, or the end of a `with` block) finishes it as "cancelled".
    """

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._row = generation.rows[0]

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while True:
            piece = self._row.take()
            if piece:
                return piece
            if self._row.finish_reason is not None:
                raise StopIteration
            self._generation.step()

    def cancel(self) -> None:
        """Stop writing; what was written stays in `completion`."""
        self._generation.cancel()

    def close(self) -> None:
        """Do as `cancel` does; the name generators have for it."""
        self.cancel()

    def __enter__(self) -> "TextStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def settings(self) -> Settings:
        """What the call asked for, with defaults filled in."""
        return self._generation.settings

    @property
    def completion(self) -> Completion:
        """The completion so far; final once the pieces have ended."""
        return self._row.completion(self._generation.settings)
