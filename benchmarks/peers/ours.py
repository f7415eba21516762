"""gemsmith, as `gemsmith generate` runs it, greedy: options cache=int8 for caches in 8 bits."""

import threading

import torch
from protocol import MAX_CONTEXT, N_THREADS, prompt_ids, serve

import gemsmith
from gemsmith.infer.generate import Generation
from gemsmith.infer.load import load
from gemsmith.infer.prompt_cache import PromptCache
from gemsmith.infer.settings import gather
from gemsmith.kernels.large_pages import THREAD_NAME
from gemsmith.model.cache import KVCache

READ = 1024  # longest context that is really read; keys and values of a longer one are made up


class Ours:
    """One loaded model and the completion it is writing."""

    def __init__(self, model, **options):
        torch.set_num_threads(N_THREADS)
        self.lm = load(model)
        self.cache_dtype = getattr(torch, options["cache"]) if "cache" in options else self.lm.dtype
        self.largest = 1 if self.cache_dtype == torch.int8 else 50
        self.generation = None
        self.facts = {"gemsmith": gemsmith.__version__, "torch": torch.__version__, **options}

    def prefill(self, n):
        self._begin(n, 1).step()

    def fill(self, n):
        self.generation = None  # its cache goes before the next one comes
        known = self._made_up(n) if n > READ else None
        self.generation = self._begin(n, min(512, MAX_CONTEXT - n), known)
        self.generation.step()
        for thread in threading.enumerate():  # what is measured afterwards is the speed it settles at
            if thread.name == THREAD_NAME:
                thread.join()

    def decode(self, n):
        for _ in range(n):
            self.generation.step()

    def _made_up(self, n):
        network = self.lm.network
        cache = KVCache(network.config, capacity=n, dtype=self.cache_dtype)
        for kind, layers in cache.stores.items():
            for store in layers.values():
                made = torch.randint(-100, 100, store.shape) / self.largest
                store.copy_(torch.full_like(store, 0.02) if "scales" in kind else made)
        cache.reserve(0, 0, n)
        return PromptCache.of(cache, prompt_ids(n), network=network)

    def _begin(self, n, n_new, known=None):
        lm = self.lm
        words = {"max_new_tokens": n_new, "temperature": 0.0, "prompt_cache": known}
        settings = gather(words, n=1, default=lm.sampling, stop_ids=frozenset(), n_pieces=lm.tokenizer.vocab_size)
        ids = prompt_ids(n)
        return Generation(lm.network, lm.tokenizer, prompts=[ids], settings=settings, cache_dtype=self.cache_dtype)


if __name__ == "__main__":
    serve(Ours)
