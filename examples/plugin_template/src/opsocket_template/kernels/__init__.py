"""One module for each family of operators. A kernel subclasses one plan class; core has checked its arguments."""
