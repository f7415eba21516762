"""transformers: bfloat16 as it comes, or torchao's few bits under torch.compile (bits=4|8)."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from protocol import MAX_CONTEXT, N_THREADS, prompt_ids, serve


class Transformers:
    """A model with the only attention its caps have, and its cache."""

    def __init__(self, model, *, bits="16", compiled=None):
        torch.set_num_threads(N_THREADS)
        torch.set_grad_enabled(False)
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.model = load(model, dtype=torch.bfloat16, attn_implementation="eager").eval()
        self.facts = {"transformers": transformers.__version__, "torch": torch.__version__, "bits": bits}
        if bits != "16":
            self._quantize(int(bits))
        self.is_compiled = compiled == "1" if compiled is not None else bits != "16"
        self.facts["compiled"] = self.is_compiled
        self.step = torch.compile(self._step) if self.is_compiled else self._step
        self.cache, self.last, self.length = None, 2, 0

    def prefill(self, n):
        self._read(n)

    def fill(self, n):
        if n <= 1024:
            self._read(n)
        else:
            self.cache = self._cache(n)
            config = self.model.config
            shape = (1, config.num_key_value_heads, n, config.head_dim)
            for index in range(config.num_hidden_layers):
                self.cache.update(*(torch.randn(shape).bfloat16() for _ in range(2)), index)
            self.length = n
        if self.is_compiled:
            self.decode(4)  # compiles, again where a number turned out to change

    def decode(self, n):
        for _ in range(n):
            place = torch.tensor([[self.length]])
            logits = self.step(torch.tensor([[self.last]]), place, self.cache)
            self.last, self.length = int(logits[0, -1].argmax()), self.length + 1

    def _step(self, ids, places, cache):
        return self.model(input_ids=ids, position_ids=places, past_key_values=cache, use_cache=True).logits

    def _read(self, n):
        self.cache, self.length = None, n
        self.cache = self._cache(n)
        said = self.model(
            input_ids=torch.tensor([prompt_ids(n)]), past_key_values=self.cache, use_cache=True, logits_to_keep=1
        )
        self.last = int(said.logits[0, -1].argmax())

    def _cache(self, n):
        config = self.model.config
        if not self.is_compiled:
            return transformers.DynamicCache(config=config)
        return transformers.StaticCache(config=config, max_cache_len=min(n + 192, MAX_CONTEXT))

    def _quantize(self, bits):
        import torchao
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        # The head is rounded too; the embedding's own rows stay in bfloat16 beside it. The prototype is the one
        # whose layout has a product for processors.
        scheme = PrototypeInt4WeightOnlyConfig(group_size=32) if bits == 4 else Int8WeightOnlyConfig()
        quantize_(self.model, scheme)
        self.facts["torchao"] = torchao.__version__


if __name__ == "__main__":
    serve(Transformers)
