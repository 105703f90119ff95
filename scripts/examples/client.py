"""A client of orlop in Python, with pycapnp. From the root of the repository:

    python3 -m venv target/venv
    target/venv/bin/pip install 'pycapnp==2.2.*'
    target/venv/bin/python scripts/examples/client.py 127.0.0.1:6000
"""

import asyncio
import sys

import capnp

orlop = capnp.load("schema/orlop.capnp")


async def main(address):
    host, _, port = address.rpartition(":")
    stream = await capnp.AsyncIoStream.create_connection(host=host, port=int(port))
    client = capnp.TwoPartyClient(stream)  # keep it: the connection ends with it
    # Nothing waits for the answer to `open`: the first call on the store travels with it.
    store = client.bootstrap().cast_as(orlop.Bootstrap).open().store

    await store.set(b"greeting", b"hello")  # answered when it is durable
    found = (await store.get(b"greeting")).lookup.found
    print("greeting:", bytes(found.value).decode())

    lookup = (await store.get(b"no such key")).lookup
    print("no such key:", lookup.which())  # an answer, not an error

    # A condition that does not hold is an answer too, and nothing is written.
    outcome = (await store.set(b"greeting", b"hi", {"ifAbsent": None})).outcome
    print("only if absent:", outcome.which())

    # A call is sent when it is made. Here a hundred are under way at once, on one connection.
    await asyncio.gather(*(store.set(b"item/%02d" % i, b"value %d" % i) for i in range(100)))

    # All keys under a prefix, in pages.
    keys, after, more = [], b"", True
    while more:
        page = await store.getPrefix(b"item/", after, 30)
        keys += [bytes(entry.key).decode() for entry in page.entries]
        after, more = keys[-1].encode(), page.more
    print(f"under item/: {len(keys)} keys, {keys[0]} to {keys[-1]}")

    large = bytes(range(256)) * (4 << 20 >> 8)
    await store.set(b"large", large)
    found = (await store.get(b"large")).lookup.found
    print("4 MiB:", "the same" if bytes(found.value) == large else "another value")

    try:
        await store.get(b"")
    except capnp.KjException as error:
        # "remote exception: WORD: a sentence"; the words are at the head of the schema.
        print("empty key:", error.description.split(": ")[1])


asyncio.run(capnp.run(main(sys.argv[1])))
