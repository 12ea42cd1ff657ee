"""Ctrl-C gets through while numpy holds a thread."""

import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from spice_rs.analysis.waiting import waited


def test_results_and_errors_come_back():
    assert waited(divmod, 7, 2) == (3, 1)
    with pytest.raises(np.linalg.LinAlgError):
        waited(np.linalg.cholesky, -np.eye(2))
    with pytest.raises(SystemExit):
        waited(sys.exit, 3)


def test_the_work_is_on_another_thread_of_the_main_one_alone():
    assert waited(threading.current_thread) is not threading.main_thread()
    found = []
    other = threading.Thread(target=lambda: found.append(waited(threading.current_thread)))
    other.start()
    other.join()
    assert found == [other]


SLOW = """
import threading
from spice_rs.analysis.waiting import waited

print("ready", flush=True)
try:
    waited(threading.Event().wait)  # a step that never ends
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_step_that_never_ends_is_left_to_itself():
    with subprocess.Popen([sys.executable, "-c", SLOW], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "stopped\n"
        assert process.wait(timeout=30) == 0
