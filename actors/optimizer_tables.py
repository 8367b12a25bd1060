"""The [optimizer] tables of a topology: how parameters move, and what their gradients travel as."""

from typing import Annotated, Literal

from msgspec import Meta

from actors.table import Count, CountOrNone, Decay, NotNegative, Positive, Share, Table

DenseCodec = Literal[
    "dense",
    "int8",
    "int4",
    "int4_feedback",
    "two_bit",
    "ternary",
    "ternary_rotated",
    "two_bit_scaled",
    "ternary_scaled",
    "sign",
    "sign_rotated",
]

Codec = Literal[DenseCodec, "int4_rotated", "power", "power_int8", "power_int4"]


class OptimizerGroup(Table, frozen=True):
    """The optimizer of one group of parameters."""

    kind: Literal["muon", "muon8bit", "adamw", "adamw8bit", "foam"]
    lr: Positive
    min_lr: NotNegative = 0.0
    momentum: Decay = 0.95  # muon, muon8bit
    beta1: Decay = 0.9  # adamw, adamw8bit, foam
    beta2: Decay = 0.95
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.0
    clip: NotNegative = 0.0  # bound on the Frobenius norm of each parameter's gradient; 0: none
    coefficients: Literal["jordan", "polar_express"] = "jordan"
    iterations: Annotated[int, Meta(ge=1, le=50)] = 5
    # Size of Muon's update: 0.2 sqrt(max(m, n)), that of AdamW's, or sqrt(max(1, m / n)), where the
    # spectral norm is the learning rate (Jordan's).
    scaling: Literal["adamw_rms", "spectral"] = "adamw_rms"
    neuron_beta2: Decay = 0.0  # NorMuon's; 0: plain Muon
    map: Literal["linear", "dynamic"] = "linear"  # muon8bit: from codes to numbers
    # Codes that share a scale; 0: 2048 in muon8bit, 256 in adamw8bit.
    block: Annotated[int, Meta(ge=0, le=65536)] = 0
    level: Annotated[int, Meta(ge=0, le=16)] = 2  # foam: 2^level neighbours share their moments
    second: Literal["mean_of_squares", "square_of_mean"] = "mean_of_squares"  # foam: code or paper
    residual: NotNegative = 1.0  # foam: share of what folding loses that is put back
    alpha: Positive = 0.25  # foam: on the whole update of a matrix
    # A basis of few directions in which gradients travel; galore keeps its moments in it, too.
    projection: Literal["none", "galore", "gum"] = "none"
    rank: CountOrNone = 0  # directions; 0: a quarter of each matrix's shorter side
    refresh_every: Count = 200  # steps with one basis, each matrix in its own turn; gum: a period
    first_basis: Literal["gradient", "random"] = "gradient"  # random: until a matrix's first turn
    power_iterations: Annotated[int, Meta(ge=0, le=8)] = 1  # of the search for a basis
    basis: Literal["float32", "float16", "int8", "int4"] = "int8"  # how it is kept
    moments: Literal["keep", "rotate", "reset"] = "keep"  # galore: when the basis changes
    galore_scale: Positive = 1.0  # alpha of its paper, on the whole update; there 0.25, with AdamW
    remainder: Share = 0.1  # gum: how often what the basis misses travels instead


class OptimizerSpec(Table, frozen=True):
    """Hidden matrices and everything else are optimised differently."""

    matrices: OptimizerGroup
    dense: OptimizerGroup
    codec: Codec = "dense"  # of the matrices' gradients on their way up
    codec_rank: CountOrNone = 0  # power, power_int8, power_int4: columns of both factors
    dense_codec: DenseCodec = "dense"  # of the other group's, norms excepted
    # Of updates of dense parameters on their way down, norms excepted; ternary ones send flips.
    dense_updates: Literal["dense", "int8", "int4", "two_bit", "ternary", "sign"] = "dense"
    fire_at: tuple[Count, ...] = ()  # steps that end with FIRE: matrices become isometries again
    fire_exclude: tuple[str, ...] = ()  # patterns of names that FIRE leaves alone
    # How: by Newton-Schulz, which leaves directions that are lost as they are, or by an SVD, which
    # makes up new ones, and is the faster of the two on a CPU.
    fire_method: Literal["newton_schulz", "svd"] = "newton_schulz"
    threads: Count = 1
