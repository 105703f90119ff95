"""A foreign client of orlop: pycapnp and the schema, nothing else.

Run by tests/it/clients.rs as `checks.py HOST:PORT CHECK...` in a directory with schema/. Prints "ok CHECK" after each check
and exits 0 when every statement held. checks.cpp and checks.mjs make the same checks.
"""

import asyncio
import sys

import capnp

orlop = capnp.load("schema/orlop.capnp")


async def connect(host, port):
    stream = await capnp.AsyncIoStream.create_connection(host=host, port=port)
    return capnp.TwoPartyClient(stream).bootstrap().cast_as(orlop.Bootstrap)


async def operations(host, port):
    server = await connect(host, port)
    store = (await server.open()).store

    assert (await store.get(b"key")).lookup.which() == "absent"
    refused = (await store.set(b"key", b"value", {"ifPresent": None})).outcome
    assert refused.which() == "refused" and refused.refused.current == 0
    outcome = (await store.set(b"key", b"value")).outcome
    assert outcome.which() == "written" and not outcome.existed
    first = outcome.written.version
    found = (await store.get(b"key")).lookup.found
    assert bytes(found.value) == b"value" and found.version == first

    refused = (await store.set(b"key", b"other", {"ifAbsent": None})).outcome
    assert refused.which() == "refused" and refused.refused.current == first
    outcome = (await store.set(b"key", b"newer", {"ifVersion": first})).outcome
    assert outcome.which() == "written" and outcome.existed and outcome.written.version > first

    refused = (await store.delete(b"key", {"ifVersion": first})).outcome
    assert refused.which() == "refused" and refused.refused.current == outcome.written.version

    outcome = (await store.delete(b"key")).outcome
    assert outcome.which() == "written" and outcome.existed
    assert (await store.get(b"key")).lookup.which() == "absent"
    outcome = (await store.delete(b"key")).outcome
    assert outcome.written.version == 0 and not outcome.existed


async def batches(host, port):
    server = await connect(host, port)
    store = server.open().store
    keys = [f"batch/{i:03}".encode() for i in range(100)]
    mutations = [{"key": key, "set": b"value of " + key} for key in keys]
    mutations.append({"key": b"absent", "delete": None})
    mutations.append({"key": keys[0], "set": b"never", "condition": {"ifAbsent": None}})
    outcomes = (await store.write(mutations)).outcomes
    assert [outcome.which() for outcome in outcomes] == ["written"] * 101 + ["refused"]

    asked = [keys[7], b"absent", keys[3], keys[7]]
    lookups = (await store.getMany(asked)).lookups
    values = [bytes(lookup.found.value) if lookup.which() == "found" else None for lookup in lookups]
    assert values == [b"value of " + keys[7], None, b"value of " + keys[3], b"value of " + keys[7]]


async def listing(host, port):
    server = await connect(host, port)
    store = server.open().store
    keys = sorted(f"list/{i * 7919 % 1000:03}".encode() for i in range(500))
    await store.write([{"key": key, "set": key * 10} for key in keys])

    listed, after, more = [], b"", True
    while more:
        page = await store.getPrefix(b"list/", after, 64)
        assert 0 < len(page.entries) <= 64
        listed += [(bytes(entry.key), bytes(entry.value)) for entry in page.entries]
        after, more = listed[-1][0], page.more
    assert listed == [(key, key * 10) for key in keys]

    class Sink(orlop.EntrySink.Server):
        def __init__(self):
            self.entries = []

        async def push(self, entries, **_):
            self.entries += [(bytes(entry.key), bytes(entry.value)) for entry in entries]

    sink = Sink()
    count = (await store.streamPrefix(b"list/", sink, False)).count
    assert count == len(keys) and sink.entries == listed
    sink = Sink()
    await store.streamPrefix(b"list/1", sink, True)
    assert sink.entries == [(key, b"") for key in keys if key.startswith(b"list/1")]


async def numbers(host, port):
    server = await connect(host, port)
    info = (await server.info()).info
    assert info.placement.hash == "xxh3-64" and info.placement.shardCount == 2
    assert info.limits.keyBytesMax == 65535 and info.limits.valueBytesMax == 16 << 20
    assert len(info.storeUuid) == 16 and len(info.shardPorts) == 2

    store = server.open().store
    before = (await store.stat()).stat
    await store.set(b"number", b"1")
    await store.get(b"number")
    after = (await store.stat()).stat
    assert (after.sets, after.gets) == (before.sets + 1, before.gets + 1)
    assert after.serverVersion == info.serverVersion
    assert sum(shard.sets for shard in after.shards) == after.sets

    # Each shard's own port serves every key.
    for shard_port in info.shardPorts:
        other_server = await connect(host, shard_port)
        other = other_server.open().store
        assert bytes((await other.get(b"number")).lookup.found.value) == b"1"


async def in_flight(host, port):
    server = await connect(host, port)
    store = server.open().store
    # All calls are sent before the first answer is looked at; each answer belongs to its call.
    pairs = [(f"flight/{i:03}".encode(), f"value {i}".encode()) for i in range(500)]
    sets = [store.set(key, value) for key, value in pairs]
    assert {(await call).outcome.which() for call in sets} == {"written"}
    gets = [store.get(key) for key, _ in pairs]
    assert [bytes((await call).lookup.found.value) for call in gets] == [value for _, value in pairs]


async def large_value(host, port):
    server = await connect(host, port)
    store = server.open().store
    for size in [4 << 20, 16 << 20]:
        value = bytes(range(256)) * (size >> 8)
        await store.set(b"large", value)
        assert bytes((await store.get(b"large")).lookup.found.value) == value


async def errors(host, port):
    server = await connect(host, port)
    store = server.open().store

    async def refused(call, *words):
        try:
            await call
        except capnp.KjException as error:
            assert error.type == "FAILED", error.type
            assert "invalidArgument: " in error.description, error.description
            assert all(word in error.description for word in words), error.description
        else:
            raise AssertionError("not refused")

    await refused(store.get(b""), "key")
    await refused(store.get(b"k" * 65536), "65536", "65535")
    await refused(store.set(b"key", b"v" * ((16 << 20) + 1)), "16777217", "16777216")
    await refused(store.getPrefix(b"", b"", 0), "maxEntries")
    # The connection is as good as before.
    assert (await store.get(b"key")).lookup.which() == "absent"


async def pipelining(host, port):
    # The test's proxy lets no answer through before it has seen the key on its way to the server: waiting for the
    # answer to `open` before calling `get` would wait for ever.
    server = await connect(host, port)
    lookup = (await server.open().store.get(b"the pipelined key")).lookup
    assert bytes(lookup.found.value) == b"got in one round trip"


async def ended(host, port):
    # The test's proxy ends the connection when it has seen the key: the call fails, it does not wait for ever.
    server = await connect(host, port)
    try:
        await server.open().store.get(b"the pipelined key")
    except capnp.KjException as error:
        assert error.type == "DISCONNECTED", error.type
    else:
        raise AssertionError("answered")


CHECKS = [operations, batches, listing, numbers, in_flight, large_value, errors, pipelining, ended]


async def main(address, *names):
    host, _, port = address.rpartition(":")
    for name in names:
        await {check.__name__: check for check in CHECKS}[name](host, int(port))
        print("ok", name, flush=True)


if __name__ == "__main__":
    asyncio.run(capnp.run(main(*sys.argv[1:])))
