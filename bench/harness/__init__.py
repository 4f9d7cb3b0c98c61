"""What the suites share: records, the machine, timers, workloads, counters, cells of tables, plots, arguments."""
