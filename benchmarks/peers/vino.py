"""OpenVINO over the folder of openvino_files.py, with its own choice of cache (cache=u8|bf16|f32 to say another)."""

import numpy as np
import openvino
from protocol import N_THREADS, prompt_ids, serve

RANGE = 0.5


class OpenVino:
    """A compiled stateful model and one request."""

    def __init__(self, model, *, cache=None):
        core = openvino.Core()
        words = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": N_THREADS, "NUM_STREAMS": 1}
        if cache is not None:
            words["KV_CACHE_PRECISION"] = cache
        compiled = core.compile_model(f"{model}/openvino_model.xml", "CPU", words)
        self.names = {name for port in compiled.inputs for name in port.names}
        self.request = compiled.create_infer_request()
        said = {}
        for key in ("KV_CACHE_PRECISION", "INFERENCE_PRECISION_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE"):
            said[key.lower()] = str(compiled.get_property(key))
        self.facts = {"openvino": openvino.__version__, **said}
        self.length, self.last = 0, 2

    def prefill(self, n):
        self.request.reset_state()
        self.length = 0
        self._read(prompt_ids(n))

    def fill(self, n):
        if n <= 1024:
            self.prefill(n)
            return
        self.prefill(1)
        generator = np.random.default_rng(0)
        for state in self.request.query_state():
            shape = list(state.state.shape)
            if len(shape) == 4:
                shape[2] = n
                state.state = openvino.Tensor(generator.standard_normal(shape, np.float32) * RANGE)
        self.length = n

    def decode(self, n):
        for _ in range(n):
            self._read([self.last])

    def _read(self, ids):
        n = len(ids)
        places = np.arange(self.length, self.length + n, dtype=np.int64)[None]
        given = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, self.length + n), np.int64),
            "position_ids": places,
            "beam_idx": np.zeros(1, np.int32),
        }
        said = self.request.infer({name: value for name, value in given.items() if name in self.names})
        self.last, self.length = int(said["logits"][0, -1].argmax()), self.length + n


if __name__ == "__main__":
    serve(OpenVino)
