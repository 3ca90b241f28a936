"""How a user's code looks to a type checker; checked by mypy --strict, never run."""

import pathlib
from typing import List

import ovpress_client
from ovpress_client import AsyncClient, Client, Job, Result


def blocking() -> float:
    with Client("localhost:8470", tls_ca="ca.pem", token_file=pathlib.Path("token")) as client:
        result: Result = client.compress("m.xml", "out/", mode="int4_sym", ratio=0.8, group_size=64)
        jobs: List[Job] = client.list(filter="state=RUNNING", limit=3)
        try:
            client.watch(jobs[0], progress=lambda phase, done, total: print(phase, done, total)).result()
        except ovpress_client.ResourceExhaustedError as error:
            delay: float = error.retry_after or 1.0
            print(delay, error.violations[0].subject, error.metadata["limit"])
        return result.bits_per_weight


async def concurrent() -> pathlib.Path:
    async with AsyncClient("localhost:8470") as client:
        scope = ovpress_client.IgnoredScope(types=["Gather"])
        job: Job = await client.submit("m.xml", ignored_scope=scope, labels={"team": "a"})
        return (await client.download(await client.watch(job), "out/m.xml")).xml
