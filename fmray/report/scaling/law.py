"""The scaling law L(N, D) = E + A / N^alpha + B / D^beta and what follows from it (Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556).

N parameters, D tokens trained on, L the loss in nats a token, C = 6 N D floating-point operations of the training.
"""

import math
from dataclasses import dataclass

from fmray.core.errors import ConfigError


@dataclass(frozen=True)
class Law:
    """The five parameters. E is the loss that no size and no amount of text goes below."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, n_params: float, tokens: float) -> float:
        """The loss of a model of so many parameters after so many tokens, nats a token."""
        return self.E + self.A * n_params**-self.alpha + self.B * tokens**-self.beta

    def optimum(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens of the lowest loss that so many FLOPs reach (equation 4 there): N = G (C/6)^(beta/(alpha+beta)) with
        G = (alpha A / (beta B))^(1/(alpha+beta)), and D = C / (6 N).
        """
        both = self.alpha + self.beta
        # In logarithms, for a resample may hold any A and B.
        log_n = (math.log(self.alpha * self.A) - math.log(self.beta * self.B) + self.beta * math.log(flops / 6)) / both
        log_d = math.log(flops / 6) - log_n
        return math.exp(min(log_n, 700.0)), math.exp(min(log_d, 700.0))

    def budget(self, loss: float) -> float:
        """The least FLOPs that reach a loss.

        On the optimum both terms fall as C^-g with g = alpha beta / (alpha + beta), so L - E = K (C/6)^-g, K from C = 6.

        Raises:
            ConfigError: the loss lies at or below E.
        """
        if loss <= self.E:
            raise ConfigError(f"{loss:g} is not above E = {self.E:.4g}, which by these runs no size and no amount of text goes below", where="--target-loss")
        n_params, tokens = self.optimum(6.0)
        g = self.alpha * self.beta / (self.alpha + self.beta)
        log_c = math.log((self.loss(n_params, tokens) - self.E) / (loss - self.E)) / g
        return 6.0 * math.exp(min(log_c, 700.0))
