"""What a lane holds throughout attention's loop over keys fits its registers, by the compiler that ships."""

from __future__ import annotations

import pytest

from opsocket.runtime import load_config
from opsocket_conformance.case import parse_case
from opsocket_conformance.checks import CHECKS
from opsocket_conformance.isolation import run_isolated
from opsocket_triton.arches import find_arch
from opsocket_triton.compile import compile_all
from opsocket_triton.specialization import Specialization

BY_CHANNEL = (
    "attention[hq=16,hkv=1,d=576,dv=512,q=bf16,kv=i8.channel,batch=decode,x=normal,latent=1]#0",
    "attention[hq=14,hkv=2,d=256,q=f16,kv=i8.channel+i4.token_head,batch=short,x=cancel,mask=full,cap=30.0]#0",
)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_scales_of_channels_of_wide_heads_are_not_held_by_every_lane(arch, tmp_path, monkeypatch) -> None:
    """Kept beside f32 factors they were 2 to 4 KB of each lane, read again for every tile of keys."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    results = run_isolated(
        [parse_case(case, CHECKS) for case in BY_CHANNEL],
        load_config().override("argument", {"backend": "cuda"}),
        environment={"OPSOCKET_INTERPRET": arch},
        record="rehearse",
        limit_s=600.0,
    )
    records = {record for result in results for some in result.launched.values() for record in some}
    launches = [launch for launch in map(Specialization.loads, records) if launch.kernel.endswith(":attend")]
    artifacts = compile_all([(launch, find_arch(arch)) for launch in launches])
    assert {dict(launch.constants)["D0"] for launch in launches} == {256, 512}
    assert all(artifact.problems == () for artifact in artifacts)
