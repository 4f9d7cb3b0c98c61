"""What only a GPU can show. Run it on a machine that has one:

    python -m pytest tests/gpu

It is collected only where `torch.cuda.is_available()`; elsewhere nothing of it runs and nothing is skipped.
"""
