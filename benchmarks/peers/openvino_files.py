"""Write OpenVINO's models from the dense folder, embedding and head in the same bits as the rest.

    PYTHON benchmarks/peers/openvino_files.py FOLDER [4|8 ...]

PYTHON has optimum-intel and nncf. 4 bits are symmetric in groups of 32, as ours are (4.5 bits a weight);
8 bits have a scale for each row, the only kind it offers (8.0 bits).
"""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

SCHEMES = {
    4: {"bits": 4, "sym": True, "group_size": 32, "ratio": 1.0, "all_layers": True},
    8: {"bits": 8, "sym": True},
}


def main(folder, *bits):
    for word in bits or ("4", "8"):
        place = folder / f"openvino-int{word}"
        if place.exists():
            continue
        config = OVWeightQuantizationConfig(**SCHEMES[int(word)])
        model = OVModelForCausalLM.from_pretrained(
            str(folder / "dense"), export=True, compile=False, quantization_config=config, use_cache=True
        )
        model.save_pretrained(place)
        print(place, sum(path.stat().st_size for path in place.iterdir()) / 1e9, "GB", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
