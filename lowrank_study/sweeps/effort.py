"""Count the operations of runs, for packs and forecasts."""

from dataclasses import dataclass, field, replace

from lowrank_study.loaded import splits_of
from lowrank_study.methods.head import HeadOnly
from lowrank_study.methods.layers.linear import adapted_modules, is_linear, linear_shape
from lowrank_study.spec import Asset, RunSpec
from lowrank_study.training.models import model_without_weights


@dataclass(slots=True)
class Effort:
    """Counts the operations of runs, and caches the shapes of models."""

    _maps: dict[tuple[Asset, str, str | None], tuple[int, int]] = field(default_factory=dict)

    def of(self, spec: RunSpec) -> float:
        """Return a run's multiplications and additions.

        Each weight costs two operations per token and pass. The passes are forward, back to the
        activations (not for a linear probe), and back to the weights (only of trained ones).
        """
        splits = splits_of(spec)
        weights, widths = self._shapes(spec)
        trained = spec.method.multiplications(weights, widths)
        evaluated = spec.train.evaluations * splits.validation.lengths.sum()
        if spec.train.read_test:
            seen = splits.train.first(len(splits.validation))
            evaluated += splits.test.lengths.sum() + seen.lengths.sum()
        tokens = spec.train.epochs * splits.train.lengths.sum()
        return float(2 * (trained * tokens + weights * evaluated))

    def _shapes(self, spec: RunSpec) -> tuple[int, int]:
        """Return the number of weights, and the sum of (in + out) over the adapted maps."""
        key = spec.model.source, type(spec.method).__name__, spec.method.target_label
        if key not in self._maps:
            if spec.method.needs_weights:
                spec = replace(spec, method=HeadOnly(learning_rate=spec.method.learning_rate))
            model = model_without_weights(spec)
            shapes = [linear_shape(module) for module in model.modules() if is_linear(module)]
            adapted = [linear_shape(module.base) for _, module in adapted_modules(model)]
            self._maps[key] = sum(i * o for i, o in shapes), sum(map(sum, adapted))
        return self._maps[key]
