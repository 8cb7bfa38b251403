"""The variational auto-encoder of one modality, alone or under the condition of another."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from avcl.errors import BatchError, ConfigError
from avcl.nn.autoencoders import Autoencoder, Present, Value, kept, rows_of
from avcl.nn.conditioning import positive
from avcl.nn.multimodal_vae import Likelihood, LogLikelihood, MultimodalVAE, log_likelihood, one_likelihood
from avcl.objectives import elbo, gaussian_kl_between, sample_gaussian
from avcl.objectives.inputs import at_least


class VAE(MultimodalVAE):
    """One modality: ``L = -E_q log p(x | z) + β KL(q(z | x) ‖ N(0, I))``, q and likelihood as in ``MultimodalVAE``.

    ``encoder`` gives [B, 2·dim] = [mean ; log-variance], ``decoder`` takes [B, dim]. ``modality`` is the key of its
    inputs and targets. Kingma & Welling 2014. Pitfall: with β = 1 and wide data of unit variance the bound may prefer
    not to use z at all: look at "kl", warm β up or give free bits.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        dim: int,
        modality: str,
        beta: float = 1.0,
        likelihood: Likelihood | LogLikelihood = "gaussian",
        free_bits: float = 0.0,
    ):
        super().__init__(
            {modality: encoder},
            {modality: decoder},
            dim=dim,
            joint="tied",
            likelihoods=likelihood,
            beta=beta,
            free_bits=free_bits,
        )


class ConditionalVAE(Autoencoder):
    """One modality given another: ``L = -E_q log p(x | z, c) + β KL(q(z | x, c) ‖ p(z | c))``, c the condition's code.

    ``condition`` maps the modality ``given`` to c [B, K], ``encoder`` (x, c) to [B, 2·dim], ``decoder`` (z, c) to x̂,
    ``prior`` c to [B, 2·dim]; without it the prior is N(0, I). ``conditioning.Beside`` makes encoder and decoder of one
    net each. ``encode`` returns "condition", "posterior" where ``target`` is among the inputs, and "prior" where there
    is one. A row without the condition has c = 0, so trained with some of those it also generates unconditionally.

    Sohn et al. 2015. Pitfall: with a strong condition z is ignored and every sample is the conditional mean; with a
    strong z the condition is. Compare ``generate`` from several samples, and from a wrong partner's condition.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        condition: nn.Module,
        *,
        dim: int,
        target: str,
        given: str,
        prior: nn.Module | None = None,
        beta: float = 1.0,
        likelihood: Likelihood | LogLikelihood = "gaussian",
        free_bits: float = 0.0,
    ):
        super().__init__()
        positive(dim=dim)
        at_least("beta", beta)
        at_least("free_bits", free_bits)
        if target == given:
            raise ConfigError(f'"{target}" cannot be its own condition.')
        if prior is not None and free_bits > 0:
            raise ConfigError("free bits are against N(0, I), not against a learned prior.")
        self.encoder, self.decoder, self.condition, self.prior = encoder, decoder, condition, prior
        self.dim, self.target, self.given, self.beta, self.free_bits = dim, target, given, beta, free_bits
        self.likelihood = one_likelihood(likelihood)
        self.modalities = (target, given)
        self.latents = ("condition", "posterior") if prior is None else ("condition", "posterior", "prior")

    def encode(self, inputs: Mapping[str, Value], *, present: Present = None) -> Mapping[str, Tensor]:
        if self.given not in inputs:
            raise BatchError(f"the condition {self.given} is missing; mark absent rows by present instead.")
        there, c = rows_of(self.given, present, inputs), self.condition(inputs[self.given])
        latents = {"condition": kept(c, there)}
        if self.target in inputs:
            x = inputs[self.target]
            if isinstance(x, Tensor) and present is not None and self.target in present:
                x = kept(x, present[self.target])
            latents["posterior"] = self.encoder(x, latents["condition"])
        if self.prior is not None:
            latents["prior"] = self.prior(latents["condition"])
        for name in latents.keys() - {"condition"}:
            if latents[name].shape != (len(c), 2 * self.dim):
                raise BatchError(f"{name} must be [{len(c)}, {2 * self.dim}], not {tuple(latents[name].shape)}.")
        return latents

    def decode(self, latent: Tensor, modality: str, condition: Tensor | None = None) -> Tensor:
        """x̂ of z [B, dim] under ``condition`` c [B, K], which is needed."""
        if modality != self.target or condition is None:
            raise ConfigError(f"this decodes {self.target} under a condition, not {modality} from {self.given} alone.")
        return self.decoder(latent, condition)

    def codes(self, latents: Mapping[str, Tensor], *, present: Present = None) -> Mapping[str, Tensor]:
        """The means of posterior and prior, and the condition."""
        return {name: x if name == "condition" else x[:, : self.dim] for name, x in latents.items()}

    def generate(
        self,
        inputs: Mapping[str, Value],
        target: str,
        *,
        present: Present = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """``target`` from the condition: from the mean of the prior, or with a ``generator`` from a sample of it."""
        latents = self.encode({self.given: inputs[self.given]}, present=present)
        c = latents["condition"]
        parameters = latents["prior"] if self.prior is not None else c.new_zeros(len(c), 2 * self.dim)
        z, log_variance = parameters.chunk(2, 1)
        if generator is not None:
            z = sample_gaussian(z, log_variance, generator=generator).to(c.dtype)
        return self.decode(z, target, c)

    def terms(
        self,
        latents: Mapping[str, Tensor],
        targets: Mapping[str, Value],
        *,
        label: Tensor | None = None,
        present: Present = None,
        generator: torch.Generator | None = None,
    ) -> Mapping[str, Tensor]:
        """``{target}_from_{given}`` and "kl", over the rows that have the target."""
        rows = rows_of(self.target, present, targets)
        if "posterior" not in latents or not bool(rows.any()):
            raise BatchError(f"nothing to learn: no row has {self.target}.")
        mean, log_variance = latents["posterior"][rows].chunk(2, 1)
        z = sample_gaussian(mean, log_variance, generator=generator).to(mean.dtype)
        made = self.decode(z, self.target, latents["condition"][rows])
        found = log_likelihood(self.likelihood, targets[self.target], made[None], rows, rows)
        if "prior" in latents:
            kl = self.beta * gaussian_kl_between(mean, log_variance, *latents["prior"][rows].chunk(2, 1))
        else:
            nothing = torch.zeros_like(found[0])
            kl = elbo(nothing, mean, log_variance, beta=self.beta, free_bits=self.free_bits)
        return {f"{self.target}_from_{self.given}": -found.mean(), "kl": kl}
