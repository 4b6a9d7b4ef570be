"""What a run came to, told to machines (JSON, JUnit) and to people (terminal, Markdown)."""
