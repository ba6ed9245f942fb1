"""Count the operations of runs, for packs and forecasts."""

from dataclasses import dataclass, field, replace

from lowrank_study.loaded import splits_of
from lowrank_study.methods.full import FullFineTuning
from lowrank_study.methods.layers.linear import adapted_modules, is_linear, linear_shape
from lowrank_study.spec import Asset, RunSpec
from lowrank_study.tasks.generation import Generation
from lowrank_study.training.generation import most_tokens
from lowrank_study.training.models import model_without_weights


@dataclass(slots=True)
class Effort:
    """Counts the operations of runs, and caches the shapes of models."""

    _maps: dict[tuple[Asset, str, str | None, int], tuple[int, int]] = field(default_factory=dict)

    def of(self, spec: RunSpec) -> float:
        """Return a run's multiplications and additions."""
        return self.training(spec) + self.evaluation(spec)

    def training(self, spec: RunSpec) -> float:
        """Return the operations of all training steps."""
        trained, _ = self.a_token(spec)
        return float(trained * spec.train.epochs * splits_of(spec).train.lengths.sum())

    def evaluation(self, spec: RunSpec) -> float:
        """Return the operations of all evaluations."""
        splits, (_, evaluated) = splits_of(spec), self.a_token(spec)
        tokens = spec.train.evaluations * splits.validation.lengths.sum()
        if spec.train.read_test:
            seen = splits.train.first(len(splits.validation))
            tokens += splits.test.lengths.sum() + seen.lengths.sum()
            if isinstance(spec.task, Generation):
                tokens += most_tokens(spec.task, splits)
        return float(evaluated * tokens)

    def a_token(self, spec: RunSpec) -> tuple[int, int]:
        """Return the operations of training and of evaluation for one token.

        Each weight costs two operations per token and pass. The passes are forward, back to the
        activations (not for a linear probe), and back to the weights (only of trained ones).
        """
        weights, widths = self._shapes(spec)
        return 2 * spec.method.multiplications(weights, widths), 2 * weights

    def _shapes(self, spec: RunSpec) -> tuple[int, int]:
        """Return the number of weights, and the sum of (in + out) over the adapted maps."""
        labels = len(splits_of(spec).labels)
        key = spec.model.source, type(spec.method).__name__, spec.method.target_label, labels
        if key not in self._maps:
            if spec.method.needs_weights:
                rate = spec.method.learning_rate
                spec = replace(spec, method=FullFineTuning(learning_rate=rate))
            model = model_without_weights(spec)
            shapes = [linear_shape(module) for module in model.modules() if is_linear(module)]
            widths = sum(module.width for _, module in adapted_modules(model))
            self._maps[key] = sum(i * o for i, o in shapes), widths
        return self._maps[key]
