// A client of orlop in JavaScript, with capnp-es on Node.js (18 or newer). From the root of the repository:
//
//     npm --prefix scripts/examples ci
//     (cd scripts/examples && npx capnpc-js <../../schema/orlop.cgr)
//     node scripts/examples/client.mjs 127.0.0.1:6000
//
// The second command makes orlop.js. `npx capnp-es orlop.capnp` makes the same where the `capnp` tool is installed.

import { Bootstrap } from "./orlop.js";
import { connect } from "./tcp.mjs";

const bytes = (text) => new TextEncoder().encode(text);
const text = (data) => new TextDecoder().decode(data.toUint8Array());

// A call is sent when it is made; its parameters of type Data are given their length first.
const set = (store, key, value, fillCondition = () => {}) =>
  store.set((call) => {
    call._initKey(key.length).copyBuffer(key);
    call._initValue(value.length).copyBuffer(value);
    fillCondition(call._initCondition());
  }).promise();

const get = (store, key) =>
  store.get((call) => call._initKey(key.length).copyBuffer(key)).promise();

const connection = await connect(process.argv[2]);
// Nothing waits for the answer to `open`: the first call on the store travels with it.
const store = connection.bootstrap(Bootstrap).open().getStore();

await set(store, bytes("greeting"), bytes("hello")); // answered when it is durable
const { lookup } = await get(store, bytes("greeting"));
console.log("greeting:", text(lookup.found.value));

const missing = await get(store, bytes("no such key")); // an answer, not an error
console.log("no such key:", missing.lookup._isAbsent ? "absent" : "found");

// A condition that does not hold is an answer too, and nothing is written.
const { outcome } = await set(store, bytes("greeting"), bytes("hi"), (condition) => {
  condition.ifAbsent = true;
});
console.log("only if absent:", outcome._isRefused ? "refused" : "written");

// A hundred calls are under way at once, on one connection.
const numbers = Array.from({ length: 100 }, (_, i) => String(i).padStart(2, "0"));
await Promise.all(numbers.map((i) => set(store, bytes(`item/${i}`), bytes(`value ${i}`))));

// All keys under a prefix, in pages.
const keys = [];
for (let after = bytes(""), more = true; more; ) {
  const page = await store.getPrefix((call) => {
    call._initPrefix(5).copyBuffer(bytes("item/"));
    call._initAfter(after.length).copyBuffer(after);
    call.maxEntries = 30;
  }).promise();
  for (const entry of page.entries) keys.push(text(entry.key));
  after = bytes(keys.at(-1));
  more = page.more;
}
console.log(`under item/: ${keys.length} keys, ${keys[0]} to ${keys.at(-1)}`);

const large = new Uint8Array(4 << 20).map((_, i) => i);
await set(store, bytes("large"), large);
const back = (await get(store, bytes("large"))).lookup.found.value.toUint8Array();
console.log("4 MiB:", Buffer.compare(back, large) === 0 ? "the same" : "another value");

try {
  await get(store, bytes(""));
} catch (error) {
  // "... failed at orlop.capnp:Store.get(): WORD: a sentence"; the words are at the head of the schema.
  console.log("empty key:", /\(\): (\w+): /.exec(error.message)[1]);
}

connection.shutdown();
