"""`make bench-decisions`: what the operator's own decisions do in simulated rollouts, beside what other tools would do.

Every engine row is `cutover_operator.simulation.simulate`, which walks rollouts through the functions that decide live
ones (a unit test proves that `decide` makes the same moves). Seeds are fixed and printed, shares come with their
standard errors, every goal prints PASS or FAIL; the exit code only says whether the bench could run.
"""
