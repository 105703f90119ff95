// A foreign client of orlop: Debian's libcapnp and the schema, nothing else.
//
// Run by tests/it/clients.rs as `checks HOST:PORT CHECK...`. Prints "ok CHECK" after each check and exits with 0 when every
// statement held. checks.py and checks.mjs make the same checks.

#include <algorithm>
#include <cstdio>
#include <functional>
#include <iostream>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <capnp/ez-rpc.h>

#include "orlop.capnp.h"

using Pair = std::pair<std::string, std::string>;
using SetCondition = std::function<void(Condition::Builder)>;

static capnp::Data::Reader bytes(const std::string &text) {
    return capnp::Data::Reader(reinterpret_cast<const kj::byte *>(text.data()), text.size());
}

static std::string text(capnp::Data::Reader data) { return std::string(data.asChars().begin(), data.size()); }

static std::string numbered(const char *prefix, int i) {
    char key[32];
    std::snprintf(key, sizeof key, "%s/%03d", prefix, i);
    return key;
}

/// A connection and its store, opened by a call that nobody waits for.
struct Connection {
    capnp::EzRpcClient client;
    kj::WaitScope &scope;
    Bootstrap::Client server;
    Store::Client store;

    explicit Connection(const std::string &address)
        : client(address.c_str()), scope(client.getWaitScope()), server(client.getMain<Bootstrap>()),
          store(server.openRequest().send().getStore()) {}

    auto sendGet(const std::string &key) {
        auto request = store.getRequest();
        request.setKey(bytes(key));
        return request.send();
    }

    auto sendSet(const std::string &key, const std::string &value, SetCondition condition = nullptr) {
        auto request = store.setRequest();
        request.setKey(bytes(key));
        request.setValue(bytes(value));
        if (condition) condition(request.initCondition());
        return request.send();
    }

    auto get(const std::string &key) { return sendGet(key).wait(scope); }

    auto set(const std::string &key, const std::string &value, SetCondition condition = nullptr) {
        return sendSet(key, value, std::move(condition)).wait(scope);
    }

    auto remove(const std::string &key, SetCondition condition = nullptr) {
        auto request = store.deleteRequest();
        request.setKey(bytes(key));
        if (condition) condition(request.initCondition());
        return request.send().wait(scope);
    }
};

/// What a sink was pushed.
class Sink final : public EntrySink::Server {
  public:
    explicit Sink(std::vector<Pair> &pushed) : pushed(pushed) {}

    kj::Promise<void> push(PushContext context) override {
        for (auto entry : context.getParams().getEntries())
            pushed.emplace_back(text(entry.getKey()), text(entry.getValue()));
        return kj::READY_NOW;
    }

  private:
    std::vector<Pair> &pushed;
};

static void operations(const std::string &address) {
    Connection connection(address);
    Store::Client opened = connection.server.openRequest().send().wait(connection.scope).getStore();
    connection.store = opened;

    KJ_ASSERT(connection.get("key").getLookup().isAbsent());
    auto onlyIfPresent = connection.set("key", "value", [](auto c) { c.setIfPresent(); });
    KJ_ASSERT(onlyIfPresent.getOutcome().isRefused());
    KJ_ASSERT(onlyIfPresent.getOutcome().getRefused().getCurrent() == 0);
    auto written = connection.set("key", "value");
    KJ_ASSERT(written.getOutcome().isWritten() && !written.getOutcome().getExisted());
    uint64_t first = written.getOutcome().getWritten().getVersion();
    auto found = connection.get("key");
    KJ_ASSERT(text(found.getLookup().getFound().getValue()) == "value");
    KJ_ASSERT(found.getLookup().getFound().getVersion() == first);

    auto refused = connection.set("key", "other", [](auto c) { c.setIfAbsent(); });
    KJ_ASSERT(refused.getOutcome().isRefused());
    KJ_ASSERT(refused.getOutcome().getRefused().getCurrent() == first);
    auto newer = connection.set("key", "newer", [&](auto c) { c.setIfVersion(first); });
    KJ_ASSERT(newer.getOutcome().isWritten() && newer.getOutcome().getExisted());
    uint64_t second = newer.getOutcome().getWritten().getVersion();
    KJ_ASSERT(second > first);
    auto stale = connection.remove("key", [&](auto c) { c.setIfVersion(first); });
    KJ_ASSERT(stale.getOutcome().isRefused());
    KJ_ASSERT(stale.getOutcome().getRefused().getCurrent() == second);

    auto deleted = connection.remove("key");
    KJ_ASSERT(deleted.getOutcome().isWritten() && deleted.getOutcome().getExisted());
    KJ_ASSERT(connection.get("key").getLookup().isAbsent());
    auto again = connection.remove("key");
    KJ_ASSERT(again.getOutcome().getWritten().getVersion() == 0 && !again.getOutcome().getExisted());
}

static void batches(const std::string &address) {
    Connection connection(address);
    auto write = connection.store.writeRequest();
    auto mutations = write.initMutations(102);
    for (int i = 0; i < 100; i++) {
        mutations[i].setKey(bytes(numbered("batch", i)));
        mutations[i].setSet(bytes("value of " + numbered("batch", i)));
    }
    mutations[100].setKey(bytes("absent"));
    mutations[100].setDelete();
    mutations[101].setKey(bytes(numbered("batch", 0)));
    mutations[101].setSet(bytes("never"));
    mutations[101].initCondition().setIfAbsent();
    auto written = write.send().wait(connection.scope);
    KJ_ASSERT(written.getOutcomes().size() == 102);
    for (int i = 0; i < 101; i++) KJ_ASSERT(written.getOutcomes()[i].isWritten(), i);
    KJ_ASSERT(written.getOutcomes()[101].isRefused());

    const std::string asked[] = {numbered("batch", 7), "absent", numbered("batch", 3), numbered("batch", 7)};
    auto request = connection.store.getManyRequest();
    auto keys = request.initKeys(4);
    for (int i = 0; i < 4; i++) keys.set(i, bytes(asked[i]));
    auto answer = request.send().wait(connection.scope);
    KJ_ASSERT(answer.getLookups().size() == 4);
    for (int i = 0; i < 4; i++) {
        auto lookup = answer.getLookups()[i];
        KJ_ASSERT(lookup.isAbsent() == (i == 1), i);
        if (lookup.isAbsent()) continue;
        KJ_ASSERT(text(lookup.getFound().getValue()) == "value of " + asked[i], i);
    }
}

static void listing(const std::string &address) {
    Connection connection(address);
    std::vector<Pair> pairs, some;
    for (int i = 0; i < 500; i++) {
        std::string key = numbered("list", i * 7919 % 1000), value;
        for (int repeat = 0; repeat < 10; repeat++) value += key;
        pairs.emplace_back(key, value);
    }
    std::sort(pairs.begin(), pairs.end());
    auto write = connection.store.writeRequest();
    auto mutations = write.initMutations(pairs.size());
    for (size_t i = 0; i < pairs.size(); i++) {
        mutations[i].setKey(bytes(pairs[i].first));
        mutations[i].setSet(bytes(pairs[i].second));
        if (pairs[i].first.compare(0, 6, "list/1") == 0) some.emplace_back(pairs[i].first, "");
    }
    write.send().wait(connection.scope);

    std::vector<Pair> listed;
    for (bool more = true; more;) {
        auto request = connection.store.getPrefixRequest();
        request.setPrefix(bytes("list/"));
        if (!listed.empty()) request.setAfter(bytes(listed.back().first));
        request.setMaxEntries(64);
        auto page = request.send().wait(connection.scope);
        KJ_ASSERT(page.getEntries().size() > 0 && page.getEntries().size() <= 64);
        for (auto entry : page.getEntries()) listed.emplace_back(text(entry.getKey()), text(entry.getValue()));
        more = page.getMore();
    }
    KJ_ASSERT(listed == pairs);

    auto stream = [&](const char *prefix, bool keysOnly, std::vector<Pair> &pushed) {
        auto request = connection.store.streamPrefixRequest();
        request.setPrefix(bytes(prefix));
        request.setSink(kj::heap<Sink>(pushed));
        request.setKeysOnly(keysOnly);
        return request.send();
    };
    // Two at once, each with a sink of its own.
    std::vector<Pair> pushed, pushedSome;
    auto all = stream("list/", false, pushed);
    auto keysOnly = stream("list/1", true, pushedSome);
    KJ_ASSERT(all.wait(connection.scope).getCount() == pairs.size());
    KJ_ASSERT(keysOnly.wait(connection.scope).getCount() == some.size());
    KJ_ASSERT(pushed == pairs);
    KJ_ASSERT(pushedSome == some);
}

static void numbers(const std::string &address) {
    Connection connection(address);
    auto answer = connection.server.infoRequest().send().wait(connection.scope);
    auto info = answer.getInfo();
    KJ_ASSERT(info.getPlacement().getHash() == "xxh3-64" && info.getPlacement().getShardCount() == 2);
    KJ_ASSERT(info.getLimits().getKeyBytesMax() == 65535);
    KJ_ASSERT(info.getLimits().getValueBytesMax() == 16 << 20);
    KJ_ASSERT(info.getStoreUuid().size() == 16 && info.getShardPorts().size() == 2);

    auto before = connection.store.statRequest().send().wait(connection.scope);
    connection.set("number", "1");
    connection.get("number");
    auto after = connection.store.statRequest().send().wait(connection.scope);
    KJ_ASSERT(after.getStat().getSets() == before.getStat().getSets() + 1);
    KJ_ASSERT(after.getStat().getGets() == before.getStat().getGets() + 1);
    KJ_ASSERT(after.getStat().getServerVersion() == info.getServerVersion());
    uint64_t sets = 0;
    for (auto shard : after.getStat().getShards()) sets += shard.getSets();
    KJ_ASSERT(sets == after.getStat().getSets());

    // Each shard's own port serves every key.
    std::string host = address.substr(0, address.rfind(':') + 1);
    for (auto port : info.getShardPorts()) {
        Connection other(host + std::to_string(port));
        KJ_ASSERT(text(other.get("number").getLookup().getFound().getValue()) == "1");
    }
}

static void inFlight(const std::string &address) {
    Connection connection(address);
    // All calls are sent before the first answer is looked at; each answer belongs to its call.
    std::vector<decltype(connection.sendSet("", ""))> sets;
    for (int i = 0; i < 500; i++) sets.push_back(connection.sendSet(numbered("flight", i), "value " + std::to_string(i)));
    for (auto &call : sets) KJ_ASSERT(call.wait(connection.scope).getOutcome().isWritten());
    std::vector<decltype(connection.sendGet(""))> gets;
    for (int i = 0; i < 500; i++) gets.push_back(connection.sendGet(numbered("flight", i)));
    for (int i = 0; i < 500; i++) {
        auto found = gets[i].wait(connection.scope);
        KJ_ASSERT(text(found.getLookup().getFound().getValue()) == "value " + std::to_string(i), i);
    }
}

static void largeValue(const std::string &address) {
    Connection connection(address);
    for (size_t size : {4 << 20, 16 << 20}) {
        std::string value(size, '\0');
        for (size_t i = 0; i < size; i++) value[i] = char(i);
        connection.set("large", value);
        KJ_ASSERT(text(connection.get("large").getLookup().getFound().getValue()) == value, size);
    }
}

template <typename Call>
static void refused(Call &&call, std::initializer_list<const char *> words) {
    try {
        call();
    } catch (const kj::Exception &error) {
        std::string reason = error.getDescription().cStr();
        KJ_ASSERT(error.getType() == kj::Exception::Type::FAILED, error);
        KJ_ASSERT(reason.find("invalidArgument: ") != std::string::npos, error);
        for (auto word : words) KJ_ASSERT(reason.find(word) != std::string::npos, word, error);
        return;
    }
    KJ_FAIL_ASSERT("not refused");
}

static void errors(const std::string &address) {
    Connection connection(address);
    refused([&] { connection.get(""); }, {"key"});
    refused([&] { connection.get(std::string(65536, 'k')); }, {"65536", "65535"});
    refused([&] { connection.set("key", std::string((16 << 20) + 1, 'v')); }, {"16777217", "16777216"});
    refused(
        [&] {
            auto request = connection.store.getPrefixRequest();
            request.setMaxEntries(0);
            request.send().wait(connection.scope);
        },
        {"maxEntries"});
    // The connection is as good as before.
    KJ_ASSERT(connection.get("key").getLookup().isAbsent());
}

static void pipelining(const std::string &address) {
    Connection connection(address);
    // The test's proxy lets no answer through before it has seen the key on its way to the server: waiting for the
    // answer to `open` before calling `get` would wait for ever.
    auto found = connection.get("the pipelined key");
    KJ_ASSERT(text(found.getLookup().getFound().getValue()) == "got in one round trip");
}

static void ended(const std::string &address) {
    Connection connection(address);
    // The test's proxy ends the connection when it has seen the key: the call fails, it does not wait for ever.
    try {
        connection.get("the pipelined key");
    } catch (const kj::Exception &error) {
        KJ_ASSERT(error.getType() == kj::Exception::Type::DISCONNECTED, error);
        return;
    }
    KJ_FAIL_ASSERT("answered");
}

int main(int argc, char *argv[]) {
    const std::map<std::string, void (*)(const std::string &)> checks = {
        {"operations", operations}, {"batches", batches},      {"listing", listing},
        {"numbers", numbers},       {"in_flight", inFlight},   {"large_value", largeValue},
        {"errors", errors},         {"pipelining", pipelining}, {"ended", ended},
    };
    for (int i = 2; i < argc; i++) {
        try {
            checks.at(argv[i])(argv[1]);
        } catch (const kj::Exception &error) {
            std::cerr << argv[i] << ": " << error.getFile() << ":" << error.getLine() << ": "
                      << error.getDescription().cStr() << "\n";
            return 1;
        }
        std::cout << "ok " << argv[i] << std::endl;
    }
}
