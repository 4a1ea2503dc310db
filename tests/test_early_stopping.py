"""Which step is the best, and when to stop."""

from actors.training.early_stopping import EarlyStopping


def test_training_stops_after_so_many_validations_without_improvement() -> None:
    validations = EarlyStopping(patience=2)
    improved, stopped = [], []
    for step, loss in ((2, 1.0), (4, 0.8), (6, 0.9), (8, 0.7), (10, 0.7), (12, float("nan"))):
        improved.append(validations.add(step, loss))
        stopped.append(validations.should_stop)
    assert improved == [True, True, False, True, False, False]
    assert stopped == [False] * 5 + [True]
    assert (validations.best_step, validations.best_loss) == (8, 0.7)
    assert [v["step"] for v in validations.curve] == [2, 4, 6, 8, 10, 12]


def test_without_patience_training_never_stops_early() -> None:
    validations = EarlyStopping()
    assert not any((validations.add(step, step), validations.should_stop)[1] for step in range(1, 50))
