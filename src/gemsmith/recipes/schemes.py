"""Words for schemes: "int4-g32-asym" <-> Scheme."""

import re
from collections.abc import Mapping

from gemsmith.errors import ConfigError
from gemsmith.kernels.quantized import Scheme
from gemsmith.model.linear import Linear
from gemsmith.model.transformer import Transformer
from gemsmith.weights.names import EMBEDDING_MODULE

DENSE = "bf16"
GROUPS = (32, 64, 128)
_WORDS = re.compile(r"int(4|8)(?:-g(\d{1,9}))?(-asym)?")
_CHOICES = f"int8, int4 or one of them with -g{', -g'.join(map(str, GROUPS))} and -asym, as in int4-g64-asym"


def parse_scheme(word: str) -> Scheme | None:
    """Return the scheme a word stands for; None for "bf16", which leaves a tensor as it is.

    "int8" has a scale for each row, "int4" one for each 32 inputs.

    Raises:
        ConfigError: There is no such scheme.
    """
    if word == DENSE:
        return None
    match = _WORDS.fullmatch(word)
    group = int(match[2]) if match is not None and match[2] else None
    if match is None or group not in (None, *GROUPS):
        raise ConfigError(f"scheme must be {_CHOICES}; got {word!r}. Choose one of them.")
    if match[1] == "4":
        return Scheme(4, group or GROUPS[0], is_symmetric=not match[3])
    return Scheme(8, group, is_symmetric=not match[3])


def words_of(scheme: Scheme | None) -> str:
    """Return the word for a scheme."""
    if scheme is None:
        return DENSE
    group = "" if scheme.group is None else f"-g{scheme.group}"
    return f"int{scheme.bits}{group}{'' if scheme.is_symmetric else '-asym'}"


def uniform(network: Transformer, *, linears: Scheme | None, table: Scheme | None) -> dict[str, Scheme]:
    """Return the same scheme for every linear, and one for the embedding, by the names of their modules."""
    found = {}
    if table is not None:
        found[EMBEDDING_MODULE] = table
    if linears is not None:
        found |= {name: linears for name, module in network.named_modules() if isinstance(module, Linear)}
    return found


def check_schemes(network: Transformer, schemes: Mapping[str, Scheme]) -> None:
    """Refuse schemes that do not fit the shapes they are meant for.

    Raises:
        ConfigError: A group does not divide the inputs of a tensor; it is named.
    """
    for name, scheme in schemes.items():
        d_in = network.get_parameter(f"{name}.weight").shape[1]
        if not fits(scheme, d_in):
            raise ConfigError(
                f"group must divide the inputs of every tensor; got {scheme.group} and {d_in} in {name!r}. "
                f"Choose one of {', '.join(str(g) for g in GROUPS if d_in % g == 0) or 'int8'}."
            )


def fits(scheme: Scheme, d_in: int) -> bool:
    """Tell whether rows of `d_in` inputs can be stored so."""
    return (scheme.bits == 8 or d_in % 2 == 0) and (scheme.group is None or d_in % scheme.group == 0)
