// A foreign client of orlop: capnp-es and the schema, on the connection and the generated code of scripts/examples.
//
// Run by tests/it/clients.rs beside a copy of those as `checks.mjs HOST:PORT CHECK...`. Prints "ok CHECK" after each check
// and exits with 0 when every statement held. checks.py and checks.cpp make the same checks.

import assert from "node:assert/strict";
import { Message } from "capnp-es";
import { Bootstrap, Entry, EntrySink } from "./orlop.js";
import { connect } from "./tcp.mjs";

const bytes = (text) => new TextEncoder().encode(text);
const text = (data) => new TextDecoder().decode(data.toUint8Array());
const numbered = (prefix, i) => `${prefix}/${String(i).padStart(3, "0")}`;
const range = (count) => Array.from({ length: count }, (_, i) => i);

function fill(init, content) {
  const source = typeof content === "string" ? bytes(content) : content;
  init(source.length).copyBuffer(source);
}

const get = async (store, key) =>
  (await store.get((call) => fill((n) => call._initKey(n), key)).promise()).lookup;

const set = async (store, key, value, condition = () => {}) =>
  (await store.set((call) => {
    fill((n) => call._initKey(n), key);
    fill((n) => call._initValue(n), value);
    condition(call._initCondition());
  }).promise()).outcome;

const remove = async (store, key, condition = () => {}) =>
  (await store.delete((call) => {
    fill((n) => call._initKey(n), key);
    condition(call._initCondition());
  }).promise()).outcome;

async function operations(server) {
  const store = (await server.open().promise()).store;

  assert((await get(store, "key"))._isAbsent);
  const onlyIfPresent = await set(store, "key", "value", (c) => (c.ifPresent = true));
  assert(onlyIfPresent._isRefused && onlyIfPresent.refused.current === 0n);
  const written = await set(store, "key", "value");
  assert(written._isWritten && !written.existed);
  const first = written.written.version;
  const { found } = await get(store, "key");
  assert.equal(text(found.value), "value");
  assert.equal(found.version, first);

  const refused = await set(store, "key", "other", (c) => (c.ifAbsent = true));
  assert(refused._isRefused && refused.refused.current === first);
  const newer = await set(store, "key", "newer", (c) => (c.ifVersion = first));
  assert(newer._isWritten && newer.existed && newer.written.version > first);
  const stale = await remove(store, "key", (c) => (c.ifVersion = first));
  assert(stale._isRefused && stale.refused.current === newer.written.version);

  const deleted = await remove(store, "key");
  assert(deleted._isWritten && deleted.existed);
  assert((await get(store, "key"))._isAbsent);
  const again = await remove(store, "key");
  assert(again.written.version === 0n && !again.existed);
}

async function batches(server) {
  const store = server.open().getStore();
  const keys = range(100).map((i) => numbered("batch", i));
  const { outcomes } = await store.write((call) => {
    const mutations = call._initMutations(102);
    for (const [i, key] of keys.entries()) {
      fill((n) => mutations.get(i)._initKey(n), key);
      fill((n) => mutations.get(i)._initSet(n), `value of ${key}`);
    }
    fill((n) => mutations.get(100)._initKey(n), "absent");
    mutations.get(100).delete = true;
    fill((n) => mutations.get(101)._initKey(n), keys[0]);
    fill((n) => mutations.get(101)._initSet(n), "never");
    mutations.get(101)._initCondition().ifAbsent = true;
  }).promise();
  assert.equal(outcomes.length, 102);
  assert(range(101).every((i) => outcomes.get(i)._isWritten));
  assert(outcomes.get(101)._isRefused);

  const asked = [keys[7], "absent", keys[3], keys[7]];
  const { lookups } = await store.getMany((call) => {
    const list = call._initKeys(asked.length);
    for (const [i, key] of asked.entries()) {
      // capnp-es cannot make an element of a List(Data) in its place: it is copied from a message of its own.
      const other = new Message().initRoot(Entry);
      fill((n) => other._initKey(n), key);
      list.set(i, other.key);
    }
  }).promise();
  const values = lookups.map((lookup) => (lookup._isFound ? text(lookup.found.value) : null));
  assert.deepEqual(values, [`value of ${keys[7]}`, null, `value of ${keys[3]}`, `value of ${keys[7]}`]);
}

async function listing(server) {
  const store = server.open().getStore();
  const keys = range(500).map((i) => numbered("list", (i * 7919) % 1000)).sort();
  await store.write((call) => {
    const mutations = call._initMutations(keys.length);
    for (const [i, key] of keys.entries()) {
      fill((n) => mutations.get(i)._initKey(n), key);
      fill((n) => mutations.get(i)._initSet(n), key.repeat(10));
    }
  }).promise();
  const pairs = keys.map((key) => [key, key.repeat(10)]);
  const pairOf = (entry) => [text(entry.key), text(entry.value)];

  const listed = [];
  for (let after = "", more = true; more; ) {
    const page = await store.getPrefix((call) => {
      fill((n) => call._initPrefix(n), "list/");
      fill((n) => call._initAfter(n), after);
      call.maxEntries = 64;
    }).promise();
    assert(page.entries.length > 0 && page.entries.length <= 64);
    listed.push(...page.entries.map(pairOf));
    after = listed.at(-1)[0];
    more = page.more;
  }
  assert.deepEqual(listed, pairs);

  const stream = async (prefix, keysOnly) => {
    const pushed = [];
    const sink = new EntrySink.Server({
      push: async (call) => void pushed.push(...call.entries.map(pairOf)),
    });
    const { count } = await store.streamPrefix((call) => {
      fill((n) => call._initPrefix(n), prefix);
      call.sink = sink.client();
      call.keysOnly = keysOnly;
    }).promise();
    assert.equal(count, BigInt(pushed.length));
    return pushed;
  };
  assert.deepEqual(await stream("list/", false), pairs);
  const some = keys.filter((key) => key.startsWith("list/1")).map((key) => [key, ""]);
  assert.deepEqual(await stream("list/1", true), some);
  // Two at once, each with a sink of its own.
  const both = await Promise.all([stream("list/", false), stream("list/1", true)]);
  assert.deepEqual(both, [pairs, some]);
}

async function numbers(server, host) {
  const { info } = await server.info().promise();
  assert.equal(info.placement.hash, "xxh3-64");
  assert.equal(info.placement.shardCount, 2);
  assert.equal(info.limits.keyBytesMax, 65535);
  assert.equal(info.limits.valueBytesMax, 16 << 20);
  assert.equal(info.storeUuid.length, 16);
  assert.equal(info.shardPorts.length, 2);

  const store = server.open().getStore();
  const before = (await store.stat().promise()).stat;
  await set(store, "number", "1");
  await get(store, "number");
  const after = (await store.stat().promise()).stat;
  assert.deepEqual([after.sets, after.gets], [before.sets + 1n, before.gets + 1n]);
  assert.equal(after.serverVersion, info.serverVersion);
  assert.equal(after.shards.map((shard) => shard.sets).reduce((a, b) => a + b), after.sets);

  // Each shard's own port serves every key.
  for (const port of info.shardPorts.toArray()) {
    const other = await connect(`${host}:${port}`);
    const lookup = await get(other.bootstrap(Bootstrap).open().getStore(), "number");
    assert.equal(text(lookup.found.value), "1");
    other.shutdown();
  }
}

async function in_flight(server) {
  const store = server.open().getStore();
  // All calls are sent before the first answer is looked at; each answer belongs to its call.
  const keys = range(500).map((i) => numbered("flight", i));
  const outcomes = await Promise.all(keys.map((key, i) => set(store, key, `value ${i}`)));
  assert(outcomes.every((outcome) => outcome._isWritten));
  const lookups = await Promise.all(keys.map((key) => get(store, key)));
  assert.deepEqual(lookups.map((lookup) => text(lookup.found.value)), range(500).map((i) => `value ${i}`));
}

async function large_value(server) {
  const store = server.open().getStore();
  for (const size of [4 << 20, 16 << 20]) {
    const value = new Uint8Array(size).map((_, i) => i);
    await set(store, "large", value);
    const { found } = await get(store, "large");
    assert.equal(Buffer.compare(found.value.toUint8Array(), value), 0);
  }
}

async function errors(server) {
  const store = server.open().getStore();
  const refused = (call, ...words) =>
    assert.rejects(call, (error) => [": invalidArgument: ", ...words].every((word) => error.message.includes(word)));

  await refused(get(store, ""), "key");
  await refused(get(store, "k".repeat(65536)), "65536", "65535");
  await refused(set(store, "key", "v".repeat((16 << 20) + 1)), "16777217", "16777216");
  await refused(store.getPrefix((call) => (call.maxEntries = 0)).promise(), "maxEntries");
  // The connection is as good as before.
  assert((await get(store, "key"))._isAbsent);
}

async function pipelining(server) {
  // The test's proxy lets no answer through before it has seen the key on its way to the server: waiting for the
  // answer to `open` before calling `get` would wait for ever.
  const { found } = await get(server.open().getStore(), "the pipelined key");
  assert.equal(text(found.value), "got in one round trip");
}

async function ended(server, host, connection) {
  // The test's proxy ends the connection when it has seen the key: the call fails, it does not wait for ever.
  await assert.rejects(get(server.open().getStore(), "the pipelined key"), /ended the connection/);
  assert.throws(() => server.open(), /the connection has ended/);
}

const checks = { operations, batches, listing, numbers, in_flight, large_value, errors, pipelining, ended };

const [address, ...names] = process.argv.slice(2);
for (const name of names) {
  const connection = await connect(address);
  await checks[name](connection.bootstrap(Bootstrap), address.split(":")[0], connection);
  connection.shutdown();
  console.log("ok", name);
}
