// TCP for capnp-es, which brings no transport: cuts the stream into messages, and ends the calls that are under way
// when the connection ends, which capnp-es would leave waiting for ever.

import { once } from "node:events";
import { createConnection } from "node:net";
import { Conn, Message } from "capnp-es";
import { Message as RpcMessage } from "capnp-es/capnp/rpc";

// The bytes of the message that begins with these, or of its head while that is incomplete.
function messageBytes(bytes) {
  const segments = bytes.readUInt32LE(0) + 1;
  const head = 8 * (Math.floor(segments / 2) + 1);
  if (bytes.length < head) return head;
  let words = 0;
  for (let i = 1; i <= segments; i++) words += bytes.readUInt32LE(4 * i);
  return head + 8 * words;
}

async function* messages(socket) {
  let parts = [];
  let size = 0;
  let wanted = 8;
  for await (const part of socket) {
    parts.push(part);
    size += part.length;
    while (size >= wanted) {
      let bytes = Buffer.concat(parts);
      wanted = messageBytes(bytes);
      if (size >= wanted) {
        yield new Message(bytes.subarray(0, wanted), false).getRoot(RpcMessage);
        bytes = bytes.subarray(wanted);
        wanted = 8;
      }
      parts = [bytes];
      size = bytes.length;
    }
  }
}

class Transport {
  constructor(socket) {
    this.socket = socket;
    this.messages = messages(socket);
  }

  sendMessage(message) {
    if (!this.socket.writable) throw new Error("the connection has ended");
    this.socket.write(new Uint8Array(message.segment.message.toArrayBuffer()));
  }

  async recvMessage() {
    const { value, done } = await this.messages.next();
    if (done) throw new Error("the server ended the connection");
    return value;
  }

  close() {
    this.socket.destroy();
  }
}

/** Connects to "HOST:PORT". The connection's `bootstrap` gives the first capability, its `shutdown` ends it. */
export async function connect(address) {
  const [, host, port] = /^(.*):(\d+)$/.exec(address);
  const socket = createConnection({ host, port: Number(port), noDelay: true });
  await once(socket, "connect");
  const connection = new Conn(new Transport(socket));
  connection.onError = (error) => {
    socket.destroy();
    for (const question of connection.questions) {
      // Nobody may be waiting for some of them, like an `open` whose store was called at once: that is no failure.
      question?.deferred.promise.catch(() => {});
      question?.cancel(error);
    }
  };
  return connection;
}
