"""Tests of every op that hold for every implementation of it.

They run three times: on the CPU with the implementations that a CPU has; in a process with `TRITON_INTERPRET=1`
(`tests/kernels/test_interpreter.py`), where the Triton kernels are interpreted; and with `FASTDM_TEST_DEVICE=cuda`
on a GPU (`tests/gpu`), where they are compiled.
"""
