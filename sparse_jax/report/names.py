"""What the name of a model or of a stage says: <method>[_<pattern>][_seed<N>]."""

import re
from typing import NamedTuple

_NAME = re.compile(r"(.+?)(?:_(\d+of\d+|u\d+|g\d+|on_\w+?))?(?:_seed(\d+))?")


class Name(NamedTuple):
    """The parts of a name.

    Attributes:
      method: how the model was made.
      pattern: its zeros, as `2of4` (2 kept of every 4), `u70` (unstructured, 70 %) or
        `g` and a number (groups); or `on_` and the domain that it was fine-tuned on.
        Methods of one pattern are compared. None = the name does not say.
      seed: which of several runs that differ in their seed alone; None = the only one.
    """

    method: str
    pattern: str | None
    seed: int | None

    @property
    def group(self) -> str:
        """The name that all seeds share."""
        return self.method if self.pattern is None else f"{self.method}_{self.pattern}"


def parse(name: str) -> Name:
    """Takes a name apart.

    Example:
      >>> parse("ast_slorb_2of4_seed1")
      Name(method='ast_slorb', pattern='2of4', seed=1)
      >>> parse("one_shot_u70").group, parse("dense_control_seed0").group
      ('one_shot_u70', 'dense_control')
      >>> parse("transfer_kd_on_gsm8k_seed2")
      Name(method='transfer_kd', pattern='on_gsm8k', seed=2)
      >>> parse("trained_70")
      Name(method='trained_70', pattern=None, seed=None)
    """
    match = _NAME.fullmatch(name)
    if match is None:  # of the empty name alone
        return Name(name, None, None)
    method, pattern, seed = match.groups()
    return Name(method, pattern, None if seed is None else int(seed))


def domain_of(pattern: str | None) -> str | None:
    """The domain that a pattern stands for; None for a pattern of zeros.

    Example:
      >>> domain_of("on_gsm8k"), domain_of("2of4")
      ('gsm8k', None)
    """
    return pattern[3:] if pattern and pattern.startswith("on_") else None


def title_of(pattern: str | None) -> str:
    """A pattern as titles say it."""
    return domain_of(pattern) or pattern or ""
