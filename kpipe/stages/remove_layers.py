"""Take whole layers and residual blocks out of the model."""

from typing import Annotated, Literal, Self

import keras
from pydantic import Field, model_validator

from kpipe.errors import KpipeError
from kpipe.layers import located
from kpipe.pipeline import STAGES, Context, FloatModel, Misfit
from kpipe.pipeline.task import loss_for
from kpipe.stages.cutting import Cut, CuttingStage, cut_in_rounds
from kpipe.stages.fields import Expressions, LayerCriterionName
from kpipe.stages.fitting import sift
from kpipe.stages.training import evidence
from kpipe.structured.candidates import layers_found
from kpipe.structured.depth import remove_layers


@STAGES("remove_layers")
class RemoveLayers(CuttingStage):
    """Take out the layers and residual blocks that the model does best without, then train what is left.

    Say which by `count` or `layers`.

    Args:
        count: How many to take out, each ranked anew after the one before.
        layers: Patterns of the names of those to take out.
        rounds: In how many rounds of cutting and training the count is reached, each with `epochs`. None for one; with
            `until`, each round takes the count anew.
        until: Go on round by round for as long as a budget lasts, such as {max_accuracy_drop: 0.01}: accuracy lost on
            the validation data beside the baseline. The last model within it is given on.
        criterion: What they are ranked by: "output" by how far the outputs move, "loss" or "accuracy" by what becomes
            of these, "random".
        ignore: Patterns of the paths of layers to leave alone.
        reestimate_batch_norm: Take the statistics of batch norms anew after each cut, before the training.
        epochs: Passes over the training data afterwards; 0 for none.
        batch_size: Samples an update.
        optimizer: The optimizer.
        loss: "auto" takes what fits the labels; else the name of a loss.
        augment: Vary images anew in every epoch, such as {flip: true, shift: 4}.
        distill: Let the baseline teach, such as {temperature: 3.0, alpha: 0.5}, or the model as it came, with teacher:
            input; features are patterns of layers whose outputs are compared too.
    """

    stage: Literal["remove_layers"] = "remove_layers"
    count: Annotated[int, Field(ge=1)] | None = None
    layers: Expressions | None = None
    criterion: LayerCriterionName = "output"
    ignore: Expressions = ()

    def only_for_training(self) -> tuple[str, ...]:
        """Name the fields that nothing reads where nothing trains; ranking by the loss reads it."""
        fields = super().only_for_training()
        return tuple(name for name in fields if not (self.criterion == "loss" and name == "loss"))

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if (self.count is None) == (self.layers is None):
            raise KpipeError("give exactly one of count and layers")
        if self.layers is not None and not self.layers:
            raise KpipeError("layers names none; give patterns of the names of layers, or a count")
        if self.layers is not None and self.criterion != "output":
            raise KpipeError("layers that are named are not ranked, and criterion would do nothing; leave it out")
        if self.layers is not None and (self.until is not None or (self.rounds or 1) > 1):
            raise KpipeError("layers that are named go at once; give a count with rounds or until, or leave these out")
        if self.rounds is not None and self.count is not None and self.until is None and self.rounds > self.count:
            raise KpipeError(f"{self.rounds} rounds cannot share {self.count} layers; give fewer rounds")
        return self

    def keeps_layers(self) -> bool:
        """Tell that layers go."""
        return False

    def misfits(self, model: keras.Model) -> list[Misfit]:
        """Name what finds no layer, beside the features."""
        stays = sift("ignore", self.ignore, lambda some: layers_found(model, some, "ignore"))[1]
        goes = sift("layers", self.layers or (), lambda some: layers_found(model, some, "layers"))[1]
        return [*super().misfits(model), *stays, *goes]

    def run(self, artifact: FloatModel, context: Context) -> FloatModel:
        """Cut and train."""
        given = artifact.model
        small = cut_in_rounds(self, given, context, lambda model, number, _: self._cut(model, number, context))
        left = located(small)
        context.record.details["removed layers"] = [{"layer": path} for path in located(given) if path not in left]
        return FloatModel(small)

    def _cut(self, model: keras.Model, number: int, context: Context) -> Cut | None:
        ignore = list(self.ignore) or None
        if self.layers is not None:
            return Cut(remove_layers(model, layers=list(self.layers), ignore=ignore))
        small = remove_layers(
            model,
            count=self._count(number),
            criterion=self.criterion,
            data=evidence(context),
            loss=loss_for(model, context.data.train[1], self.loss),
            ignore=ignore,
            seed=context.seed,
        )
        return Cut(small)

    def _count(self, number: int) -> int | None:
        """Say how many go in one round."""
        if self.count is None or self.shares is None:
            return self.count
        return self.count * number // self.shares - self.count * (number - 1) // self.shares
