"""What a run is told before its first step."""

from tiny_run import tiny_recipe

from hdit_cli.data.reader import ShardReader
from hdit_cli.engine import events
from hdit_cli.engine.outlook import notes
from hdit_cli.engine.train import train


def test_classes_that_a_recipe_leaves_out_are_told(tiny_data, tmp_path):
    reader = ShardReader(tiny_data)
    assert notes(tiny_recipe(), reader) == []
    (note,) = notes(tiny_recipe(model__classes=0), reader)
    assert "the data has 2 classes, and this recipe trains without them" in note
    seen = []
    train(
        tmp_path / "run",
        tiny_recipe(model__classes=0, train__steps=1, optimizer__warmup=0),
        data=tiny_data,
        watch=seen.append,
    )
    assert note in [event.text for event in seen if isinstance(event, events.Noted)]
