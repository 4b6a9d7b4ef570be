"""The operators, one file or folder each: what can be asked, in which cases, and how answers are judged."""
