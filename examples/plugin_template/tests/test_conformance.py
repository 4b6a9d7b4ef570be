"""Every conformance case, as a test. `pytest -k 'rope and f16'` chooses; `pytest -n 2` shares them out."""

from opsocket_conformance.testing import ConformanceSuite


class TestTemplate(ConformanceSuite):
    backend = "template"
    profiles = ("decoder",)
