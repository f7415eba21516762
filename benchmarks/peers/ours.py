"""gemsmith, as `gemsmith generate` runs it, greedy: options cache=int8 for caches in 8 bits."""

import torch
from protocol import MAX_CONTEXT, N_THREADS, prompt_ids, serve

import gemsmith
from gemsmith.infer.generate import Generation
from gemsmith.infer.load import load
from gemsmith.infer.settings import gather


class Ours:
    """One loaded model and the completion it is writing."""

    def __init__(self, model, **options):
        torch.set_num_threads(N_THREADS)
        self.lm = load(model)
        self.options = options
        self.generation = None
        self.facts = {"gemsmith": gemsmith.__version__, "torch": torch.__version__, **options}

    def prefill(self, n):
        self._begin(n, 1).step()

    def fill(self, n):
        self.generation = None  # its cache goes before the next one comes
        self.generation = self._begin(n, min(512, MAX_CONTEXT - n))
        self.generation.step()

    def decode(self, n):
        for _ in range(n):
            self.generation.step()

    def _begin(self, n, n_new):
        lm = self.lm
        words = {"max_new_tokens": n_new, "temperature": 0.0}
        settings = gather(words, n=1, default=lm.sampling, stop_ids=frozenset(), n_pieces=lm.tokenizer.vocab_size)
        cache = getattr(torch, self.options["cache"]) if "cache" in self.options else None
        return Generation(lm.network, lm.tokenizer, prompts=[prompt_ids(n)], settings=settings, cache_dtype=cache)


if __name__ == "__main__":
    serve(Ours)
