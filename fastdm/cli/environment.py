"""`fastdm env`."""

from fastdm.cli.output import print_facts


def environment() -> None:
    """Show versions, processor, GPU and settings: what belongs in a bug report."""
    from fastdm.applications.environment import summary

    print_facts("fastdm env", summary())
