from gemsmith.kernels.thread_choice import ThreadChoice


def write(choice: ThreadChoice, n_tokens: int, seconds: dict[int, float]) -> list[int]:
    """Return the number of threads of each of some tokens, which take as long as said."""
    used = []
    for _ in range(n_tokens):
        used.append(choice.n_threads)
        choice.note(seconds[used[-1]])
    return used


def test_the_faster_count_is_kept() -> None:
    used = write(ThreadChoice(1, 4), 100, {1: 2.0, 4: 1.0})
    assert used[:8] == [1] * 4 + [4] * 4
    assert used.count(1) == 12  # three trials
    assert write(ThreadChoice(1, 4), 32, {1: 1.0, 4: 2.0})[8:] == [1] * 24


def test_a_machine_that_gets_busy_is_noticed() -> None:
    choice = ThreadChoice(1, 2)
    write(choice, 64, {1: 2.0, 2: 1.0})
    used = write(choice, 600, {1: 2.0, 2: 20.0})
    assert used[-100:].count(2) <= 4


def test_trials_get_rare() -> None:
    used = write(ThreadChoice(1, 2), 10_000, {1: 1.0, 2: 2.0})
    assert used.count(2) < 60


def test_one_thread_leaves_nothing_to_try() -> None:
    assert set(write(ThreadChoice(1, 1), 50, {1: 1.0})) == {1}


def test_half_of_them_may_be_enough() -> None:
    assert write(ThreadChoice(8, 16), 32, {8: 1.0, 16: 1.1})[8:] == [8] * 24
    assert write(ThreadChoice(8, 16), 32, {8: 1.1, 16: 1.0})[8:] == [16] * 24
