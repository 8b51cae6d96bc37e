"""Profiles: a trace of exactly the steps that were asked for."""

import pytest

from tests.support.models import MLP, labelled
from trainers import Trainer
from trainers.loop.profile import Profile, bounds


def test_a_trace_of_some_steps_lies_under_the_workdir(tmp_path):
    trainer = Trainer(MLP(), labelled(40), batch_size=8, steps=9, workdir=tmp_path, profile=(3, 4))
    assert trainer.fit().status == "finished"
    assert len(list((tmp_path / "profile").rglob("*.xplane.pb"))) == 1


def test_the_traced_steps_begin_and_end_where_asked(tmp_path):
    assert bounds((3, 4)) == (2, 4)
    profile = Profile((3, 4), tmp_path)
    for step in (0, 2, 3, 4):
        profile.end(step)
        profile.begin(step)
        assert profile._runs == (step in (2, 3))
    profile.close()


def test_a_trace_that_is_under_way_is_no_reason_to_end_the_run(tmp_path, caplog):
    first, second = Profile((1, 2), tmp_path), Profile((1, 2), tmp_path)
    first.begin(0)
    second.begin(0)
    second.begin(1)
    second.close()
    first.close()
    assert len(caplog.records) == 1
    assert "Training goes on" in caplog.records[0].getMessage()


@pytest.mark.parametrize(
    ("profile", "expected"), [(5, "such as"), ((3, 2), "profile.1."), ((0, 2), "profile.0.")]
)
def test_steps_that_are_none_are_refused(tmp_path, profile, expected):
    with pytest.raises(ValueError, match=expected):
        Trainer(MLP(), labelled(), workdir=tmp_path, profile=profile)
    with pytest.raises(ValueError, match="workdir="):
        Trainer(MLP(), labelled(), profile=(1, 2))
