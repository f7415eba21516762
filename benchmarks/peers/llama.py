"""llama.cpp through the C functions of llama-cpp-python: options flash=0|1, n_ctx=N."""

import ctypes
import struct

import llama_cpp
from protocol import MAX_CONTEXT, N_THREADS, prompt_ids, serve

BATCH, PASS = 2048, 512
SEED = 64  # ids of a context that are read; a longer one repeats their keys and values


class Llama:
    """A model and its only sequence."""

    def __init__(self, model, *, flash="1", n_ctx=str(MAX_CONTEXT)):
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
        self.prefill(min(n, SEED))
        if n <= SEED:
            return
        size = llama_cpp.llama_state_seq_get_size(self.context, 0)
        small = (ctypes.c_uint8 * size)()
        assert llama_cpp.llama_state_seq_get_data(self.context, small, size, 0) == size
        large = _stretched(bytes(small), n, llama_cpp.llama_model_n_swa(self.model))
        data = (ctypes.c_uint8 * len(large)).from_buffer(large)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        assert llama_cpp.llama_state_seq_set_data(self.context, data, len(large), 0) == len(large)

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


def _stretched(state, n, window):
    """Return the state of a context of n ids made from that of a short one, its keys and values over and over.

    A state holds the cache of global layers, then that of local ones, which ends with the window. Each is
    the number of streams (1), of cells, per cell its position and sequences, and the layers' keys, then values.

    Source: ggml-org/llama.cpp, src/llama-kv-cache.cpp (`state_write`, `state_write_meta`, `state_write_data`).
    """
    large, at = bytearray(state[:8]), 8  # a mark and flags
    for positions in (range(n), range(max(0, n - window), n)):
        n_streams, n_cells = struct.unpack_from("<II", state, at)
        assert n_streams == 1, "one sequence has one stream"
        at += 8 + 12 * n_cells  # of a cell: position, number of sequences (1), the sequence
        large += struct.pack("<II", 1, len(positions)) + b"".join(
            struct.pack("<iIi", place, 1, 0) for place in positions
        )
        is_turned, n_layers = struct.unpack_from("<II", state, at)
        assert not is_turned, "values lie in rows with flash attention"
        large += state[at : at + 8]
        at += 8
        for _ in range(2 * n_layers):
            _, row = struct.unpack_from("<iQ", state, at)
            rows = state[at + 12 : at + 12 + n_cells * row]
            large += state[at : at + 12] + (rows * (len(positions) // n_cells + 1))[: len(positions) * row]
            at += 12 + n_cells * row
    assert at == len(state), "the state has another form in this version"
    return large


@llama_cpp.llama_log_callback
def _quiet(_level, _text, _data):
    """Say nothing."""


if __name__ == "__main__":
    serve(Llama)
