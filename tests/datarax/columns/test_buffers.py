import gc
import pickle
import threading

import jax
import numpy as np

from datarax.columns.buffers import Buffers

UINT8 = np.dtype(np.uint8)


def place(buffers, shape=(512, 1024), dtype=UINT8):
    array = buffers.empty(shape, dtype)
    return array, array.ctypes.data


def test_memory_that_nobody_holds_is_used_again_for_any_shape():
    buffers = Buffers()
    array, address = place(buffers)
    del array
    array, again = place(buffers, (300, 400), np.dtype(np.float32))
    assert again == address
    assert array.shape == (300, 400)
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    assert array.flags.writeable


def test_what_a_view_or_a_jax_array_holds_is_not_written_over():
    buffers = Buffers()
    array, _ = place(buffers)
    array[:] = 7
    view, on_device = array[3:5].view(np.int8), jax.device_put(array)
    del array
    for _ in range(4):
        other, _ = place(buffers)
        other[:] = 9
        del other
    gc.collect()
    assert (view == 7).all()
    assert (on_device == 7).all()


def test_small_arrays_and_objects_are_those_of_numpy():
    assert Buffers().empty((3, 2), UINT8).base is None
    assert Buffers().empty((1 << 20,), np.dtype(object)).base is None


def test_threads_never_get_the_same_memory():
    buffers, wrong = Buffers(), []

    def work(number):
        for _ in range(300):
            array, _ = place(buffers, (256, 1024))
            array[::64, ::64] = number
            wrong.append(bool((array[::64, ::64] != number).any()))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 1200
    assert not any(wrong)


def test_another_process_has_buffers_of_its_own():
    assert pickle.loads(pickle.dumps(Buffers())).empty((4,), UINT8).shape == (4,)
