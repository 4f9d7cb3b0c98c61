"""What only a GPU can show. Run it on a machine that has one:

    make gpu-test

The steps come first, then the trainings, the streams and the kernels, the tests of the ops, and the sanitizer.
It is collected only where `torch.cuda.is_available()`; elsewhere nothing of it runs and nothing is skipped.
"""
