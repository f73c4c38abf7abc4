import signal
import threading

import pytest

from train_jax.errors import Preempted
from train_jax.signals import Interrupts


@pytest.fixture(autouse=True)
def python_handles_sigint():
    """A process started in the background may inherit SIGINT ignored, and Python then leaves it so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_waits_for_the_step(signum, status):
    def train():
        with Interrupts() as asked:
            asked.stop(6)
            signal.raise_signal(signum)
            assert asked.signum == signum
            asked.stop(7)

    with pytest.raises(Preempted, match=f"stopped by {signum.name}; step 7 is saved") as stopped:
        train()
    assert stopped.value.exit_status == stopped.value.code == status


def test_the_second_interrupt_does_not_wait():
    with Interrupts() as asked:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        asked.signum = None


def test_handlers_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with Interrupts():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_signal_after_the_last_look_is_passed_on():
    with pytest.raises(KeyboardInterrupt), Interrupts():
        signal.raise_signal(signal.SIGINT)


def test_preempted_is_not_an_exception_to_swallow():
    assert not issubclass(Preempted, Exception)


def test_a_helper_thread_may_train():
    seen = []

    def work():
        with Interrupts() as asked:
            seen.append(asked.signum)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]
