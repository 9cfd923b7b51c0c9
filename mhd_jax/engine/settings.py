"""`Settings`: how a run is taken, beside its graph, its clients and its algorithm."""

from __future__ import annotations

import dataclasses

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.validation import require_counts, require_kind, require_seed
from mhd_jax.data.augmentation import Augmentation
from mhd_jax.engine.faults import ON_NONFINITE, Faults
from mhd_jax.training import optim

DEFAULT_STEPS = 2000
COMPUTE_DTYPES = ("float32", "bfloat16")
DATA_PLACEMENTS = ("auto", "device", "host")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `mhd_jax.simulate` and `mhd_jax.prepare` take; the defaults stand here alone.

    Attributes are described with `mhd_jax.engine.simulate.simulate`.
    """

    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 32
    public_batch_size: int = 64
    optimizer: optim.Optimizer | None = None
    seed: int = 0
    eval_every: int = 200
    eval_batch_size: int = 500
    augmentation: Augmentation | str | None = None
    augment_public: bool = False
    compute_dtype: str = "float32"
    data_placement: str = "auto"
    client_chunk: int | None = None
    num_devices: int | None = None
    faults: Faults | None = None
    on_nonfinite: str = "stop"

    @property
    def quarantine(self) -> bool:
        """Whether clients that diverge are taken out, and do not stop the run."""
        return self.on_nonfinite == "quarantine"

    def require_sound(self) -> None:
        """Raises `ConfigError` for a value that cannot work, whatever the clients and the algorithm."""
        require_kind("augment_public", "bool", self.augment_public)
        require_counts(
            batch_size=self.batch_size,
            public_batch_size=self.public_batch_size,
            eval_every=self.eval_every,
            eval_batch_size=self.eval_batch_size,
            client_chunk=1 if self.client_chunk is None else self.client_chunk,
            num_devices=1 if self.num_devices is None else self.num_devices,
        )
        require_seed(self.seed)
        for name, value, known in (
            ("compute_dtype", self.compute_dtype, COMPUTE_DTYPES),
            ("on_nonfinite", self.on_nonfinite, ON_NONFINITE),
            ("data_placement", self.data_placement, DATA_PLACEMENTS),
        ):
            if value not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, not {value!r}.")
        if self.faults is not None and not isinstance(self.faults, Faults):
            raise ConfigError(f"faults are a mhd_jax.Faults, not {self.faults!r}.")
