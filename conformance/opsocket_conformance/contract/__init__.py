"""What a plan owes beyond right numbers: nothing left behind by 10^4 calls, no memory taken by `run`, order, threads,
many plans side by side, errors that leave no trace, and results that do not depend on who else is in the batch."""
