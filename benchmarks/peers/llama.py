"""llama.cpp through the C functions of llama-cpp-python: options flash=0|1.

A context of thousands takes minutes to read, so it is kept beside the model as NAME.N.state.
"""

import ctypes
from pathlib import Path

import llama_cpp
from protocol import MAX_CONTEXT, N_THREADS, prompt_ids, serve

BATCH, PASS = 2048, 512


class Llama:
    """A model and its only sequence."""

    def __init__(self, model, *, flash="1", n_ctx=str(MAX_CONTEXT)):
        self.path = Path(model)
        llama_cpp.llama_log_set(_quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
        words = llama_cpp.llama_context_default_params()
        words.n_ctx, words.n_batch, words.n_ubatch = int(n_ctx), BATCH, PASS
        words.n_threads = words.n_threads_batch = N_THREADS
        words.swa_full = False  # local layers keep their window alone, as ours do
        words.flash_attn_type = int(flash)
        self.context = llama_cpp.llama_init_from_model(self.model, words)
        assert self.context, "llama.cpp made no context"
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.n_pieces = llama_cpp.llama_vocab_n_tokens(vocabulary)
        system = llama_cpp.llama_print_system_info().decode()
        self.facts = {"llama_cpp_python": llama_cpp.__version__, "flash": flash, "system": system.strip()}
        self.last = 2

    def prefill(self, n):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        ids = prompt_ids(n)
        for start in range(0, n, BATCH):
            self._read(ids[start : start + BATCH])
        self.last = self._best()

    def fill(self, n):
        state = self.path.with_name(f"{self.path.name}.{n}.state")
        room, count = (ctypes.c_int * n)(), ctypes.c_size_t()
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        where = str(state).encode()
        if n > BATCH and state.exists():
            assert llama_cpp.llama_state_seq_load_file(self.context, where, 0, room, n, ctypes.byref(count))
            return
        self.prefill(n)
        if n > BATCH:
            room[:] = prompt_ids(n)
            assert llama_cpp.llama_state_seq_save_file(self.context, where, 0, room, n)

    def decode(self, n):
        for _ in range(n):
            self._read([self.last])
            self.last = self._best()

    def _read(self, ids):
        array = (ctypes.c_int * len(ids))(*ids)
        code = llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, len(ids)))
        assert code == 0, f"llama_decode said {code}"

    def _best(self):
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return int(llama_cpp.np.ctypeslib.as_array(logits, shape=(self.n_pieces,)).argmax())


@llama_cpp.llama_log_callback
def _quiet(_level, _text, _data):
    """Say nothing."""


if __name__ == "__main__":
    serve(Llama)
