// A client of orlop in C++, with Debian's libcapnp (apt-get install g++ capnproto libcapnp-dev). From the root of the
// repository:
//
//     mkdir -p target
//     capnp compile -oc++:target --src-prefix=schema schema/orlop.capnp
//     g++ -std=c++14 -I target -o target/client scripts/examples/client.cpp target/orlop.capnp.c++ \
//         -lcapnp-rpc -lcapnp -lkj-async -lkj
//     target/client 127.0.0.1:6000

#include <cstdio>
#include <iostream>
#include <string>

#include <capnp/ez-rpc.h>

#include "orlop.capnp.h"

// Keys and values are bytes.
static capnp::Data::Reader bytes(const std::string &text) {
    return capnp::Data::Reader(reinterpret_cast<const kj::byte *>(text.data()), text.size());
}

static std::string text(capnp::Data::Reader data) { return std::string(data.asChars().begin(), data.size()); }

static auto set(Store::Client &store, const std::string &key, const std::string &value) {
    auto request = store.setRequest();
    request.setKey(bytes(key));
    request.setValue(bytes(value));
    return request.send();
}

static auto get(Store::Client &store, const std::string &key) {
    auto request = store.getRequest();
    request.setKey(bytes(key));
    return request.send();
}

static void example(const char *address) {
    capnp::EzRpcClient client(address);
    auto &waitScope = client.getWaitScope();
    // Nothing waits for the answer to `open`: the first call on the store travels with it.
    Store::Client store = client.getMain<Bootstrap>().openRequest().send().getStore();

    set(store, "greeting", "hello").wait(waitScope); // answered when it is durable
    auto found = get(store, "greeting").wait(waitScope);
    std::cout << "greeting: " << text(found.getLookup().getFound().getValue()) << "\n";

    auto missing = get(store, "no such key").wait(waitScope); // an answer, not an error
    std::cout << "no such key: " << (missing.getLookup().isAbsent() ? "absent" : "found") << "\n";

    // A condition that does not hold is an answer too, and nothing is written.
    auto conditional = store.setRequest();
    conditional.setKey(bytes("greeting"));
    conditional.setValue(bytes("hi"));
    conditional.initCondition().setIfAbsent();
    auto outcome = conditional.send().wait(waitScope);
    std::cout << "only if absent: " << (outcome.getOutcome().isRefused() ? "refused" : "written") << "\n";

    // A call is sent when it is made. Here a hundred are under way at once, on one connection.
    auto sets = kj::heapArrayBuilder<kj::Promise<void>>(100);
    for (int i = 0; i < 100; i++) {
        char key[16];
        std::snprintf(key, sizeof key, "item/%02d", i);
        sets.add(set(store, key, "value " + std::to_string(i)).ignoreResult());
    }
    kj::joinPromises(sets.finish()).wait(waitScope);

    // All keys under a prefix, in pages.
    size_t count = 0;
    std::string first, last;
    for (bool more = true; more;) {
        auto request = store.getPrefixRequest();
        request.setPrefix(bytes("item/"));
        request.setAfter(bytes(last));
        request.setMaxEntries(30);
        auto page = request.send().wait(waitScope);
        for (auto entry : page.getEntries()) {
            last = text(entry.getKey());
            if (count++ == 0) first = last;
        }
        more = page.getMore();
    }
    std::cout << "under item/: " << count << " keys, " << first << " to " << last << "\n";

    std::string large(4 << 20, '\0');
    for (size_t i = 0; i < large.size(); i++) large[i] = char(i);
    set(store, "large", large).wait(waitScope);
    auto back = get(store, "large").wait(waitScope);
    bool same = text(back.getLookup().getFound().getValue()) == large;
    std::cout << "4 MiB: " << (same ? "the same" : "another value") << "\n";

    try {
        get(store, "").wait(waitScope);
    } catch (const kj::Exception &error) {
        // "remote exception: WORD: a sentence"; the words are at the head of the schema.
        std::string reason = error.getDescription().cStr();
        reason.erase(0, reason.find(": ") + 2);
        std::cout << "empty key: " << reason.substr(0, reason.find(':')) << "\n";
    }
}

int main(int argc, char *argv[]) {
    if (argc != 2) {
        std::cerr << "usage: client HOST:PORT\n";
        return 2;
    }
    try {
        example(argv[1]);
    } catch (const kj::Exception &error) {
        std::cerr << "client: " << error.getDescription().cStr() << "\n";
        return 1;
    }
}
