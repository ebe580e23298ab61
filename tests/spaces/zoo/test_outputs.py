import copy
import pickle
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from spaces.errors import ModelError
from spaces.tracing.tracer import trace
from spaces.zoo.outputs import take_output, taken_output

Both = namedtuple("Both", "logits maps")
FORMS = {
    "dict": lambda logits, maps: {"logits": logits, "maps": maps},
    "named tuple": Both,
    "object": lambda logits, maps: SimpleNamespace(logits=logits, maps=maps),
}


class Several(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.stem, self.mid, self.fc = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Linear(6, 5)
        self.form = form

    def forward(self, x):
        maps = self.mid(self.stem(x))
        return self.form(self.fc(maps.mean((2, 3))), maps)


def outputs(form, choice):
    net = take_output(Several(form).eval(), choice)
    return net(torch.ones(2, 3, 4, 4)), net


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_an_output_is_taken_by_name(form):
    taken, net = outputs(form, "maps")
    assert taken.shape == (2, 6, 4, 4)
    assert taken_output(net) == "output maps of logits, maps"


@pytest.mark.parametrize(("choice", "shape"), [("", (2, 5)), ("0", (2, 5)), ("1", (2, 6, 4, 4)), ("-1", (2, 6, 4, 4))])
def test_an_output_is_taken_by_index_and_the_first_tensor_by_default(choice, shape):
    assert outputs(lambda *both: both, choice)[0].shape == shape


def test_a_single_tensor_stays_as_it_is():
    taken, net = outputs(lambda logits, _: logits, "aux")
    assert taken.shape == (2, 5)
    assert taken_output(net) == ""


@pytest.mark.parametrize("choice", ["depth", "2"])
def test_an_output_that_is_not_there_is_an_error_with_those_that_are(choice):
    with pytest.raises(ModelError, match=rf"--output '{choice}'.*logits, maps"):
        outputs(FORMS["dict"], choice)


def test_copies_and_pickles_take_the_same_output():
    net = take_output(nn.Sequential(nn.LSTM(3, 4)), "1")
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        with pytest.raises(ModelError, match="is a tuple"):
            other(torch.ones(2, 1, 3))


@pytest.mark.parametrize(("choice", "varying"), [("logits", {"stem", "mid"}), ("maps", {"stem"})])
def test_only_the_channels_of_the_output_that_is_taken_are_fixed(choice, varying):
    space = trace(take_output(Several(FORMS["dict"]).eval(), choice), torch.zeros(1, 3, 4, 4))
    assert set(space.full) == varying
    assert space.output == f"output {choice} of logits, maps"
