"""Masks: functions of (seed, t, row, unit), so that no chunking, loop or resumption changes one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import make_model, make_trainer, small_stream

from dnirnn import LSTM, WeightDrop
from dnirnn.masks import Masks, draw_masks


@given(
    steps=st.integers(1, 9),
    batch=st.integers(1, 4),
    size=st.integers(1, 6),
    start=st.integers(0, 50),
    over_time=st.booleans(),
    seed=st.integers(0, 99),
)
def test_one_call_is_its_steps_and_its_chunks(steps, batch, size, start, over_time, seed):
    torch.manual_seed(seed)
    masks = Masks(size, 0.4, over_time)
    masks.draw()
    reset = torch.rand(steps, batch) < 0.3
    t = torch.full((batch,), start)
    whole = masks(batch, start, steps, reset)
    for i in range(steps):
        t = torch.where(reset[i], 0, t)
        assert torch.equal(masks(batch, t)[0], whole[i])
        t = t + 1
    split = steps // 2
    assert torch.equal(masks(batch, start, split), masks(batch, start, steps)[:split])


def test_share_of_what_is_kept_and_independence_of_units_rows_and_steps():
    """65,536 draws: the mean within 5 standard deviations, neighbours uncorrelated."""
    for drop in (0.05, 0.5, 0.9):
        masks = Masks(64, drop)
        masks.draw()
        kept = masks(32, 1000, 32).double()
        spread = (drop * (1 - drop)) ** 0.5
        assert abs(kept.mean() - (1 - drop)) < 5 * spread / 256
        centred = (kept - (1 - drop)) / spread
        for dim in range(3):
            lagged = (centred * centred.roll(1, dim)).mean()
            assert abs(lagged) < 5 / 256, f"drop {drop}: dimension {dim} correlates with itself"


def test_over_time_keeps_one_mask_and_drop_zero_keeps_all():
    masks = Masks(16, 0.5, over_time=True)
    kept = masks(3, 0, 5)
    assert (kept == kept[0]).all() and not kept.all() and kept.any()
    assert not torch.equal(kept[0, 0], kept[0, 1])
    assert Masks(16, 0.0)(3, 0, 5).all()


def test_draw_changes_the_masks_and_a_state_dict_brings_them_back():
    module = torch.nn.Sequential(Masks(64, 0.5), torch.nn.Linear(1, 1))
    before, saved = module[0](2, 0), {k: v.clone() for k, v in module.state_dict().items()}
    draw_masks(module)
    assert not torch.equal(module[0](2, 0), before)
    module.load_state_dict(saved)
    assert torch.equal(module[0](2, 0), before)


@pytest.mark.parametrize("drop", [-0.1, 1.0, float("nan")])
def test_a_drop_that_is_no_probability_is_refused(drop):
    with pytest.raises(ValueError, match="drop must be a probability"):
        Masks(3, drop)


@pytest.mark.parametrize("unbroken, masks", [(True, 6), (False, 1)])
def test_a_mask_lives_for_an_update_of_a_text_and_for_a_sequence_elsewhere(
    tmp_path, unbroken, masks
):
    """One mask for a text's whole epoch would train one thinned network."""
    model, stream = make_model(estimator="none"), small_stream()
    assert stream.unbroken
    stream.unbroken = unbroken
    model.truncated.core = WeightDrop(LSTM(4, 5), 0.5)
    trainer = make_trainer(tmp_path, model=model, stream=stream, evaluate=False, updates=6)
    drawn, learn = set(), trainer.learn

    def seen():
        learn()
        drawn.update(int(part.seed) for part in model.modules() if isinstance(part, Masks))

    trainer.learn = seen
    trainer.run()
    assert len(drawn) == masks
