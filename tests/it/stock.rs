//! A foreign client: `capnp-rpc` as it comes, with its own transport, instead of the project's client.
//!
//! What works here works for any program that knows the schema alone.

use std::net::SocketAddr;

use capnp_rpc::{RpcSystem, rpc_twoparty_capnp, twoparty};
use futures::AsyncReadExt;
use orlop::proto::orlop_capnp::{server, store};
use tokio_util::compat::TokioAsyncReadCompatExt;

/// Connects; the connection's driver runs as a local task until the server or the test ends it.
pub(crate) async fn connect(address: SocketAddr) -> server::Client {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (reader, writer) = stream.compat().split();
    let network = twoparty::VatNetwork::new(
        reader,
        writer,
        rpc_twoparty_capnp::Side::Client,
        capnp::message::ReaderOptions::new(),
    );
    let mut system = RpcSystem::new(Box::new(network), None);
    let server = system.bootstrap(rpc_twoparty_capnp::Side::Server);
    tokio::task::spawn_local(system);
    server
}

/// Connects and opens the store, without waiting for an answer.
pub(crate) async fn store(address: SocketAddr) -> store::Client {
    connect(address)
        .await
        .open_request()
        .send()
        .pipeline
        .get_store()
}
