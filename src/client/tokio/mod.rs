//! Connections for users of tokio: addresses, [`connect`], a client that connects again by itself, and one that does so
//! with a connection to each shard.
//!
//! A connection's driver is spawned with `tokio::task::spawn_local`, so everything here must run inside a
//! `tokio::task::LocalSet`.

mod address;
mod links;
mod parts;
mod reconnecting;
mod sharded;
mod stream;

use ::tokio::net::{TcpStream, UnixStream};

pub use address::{Address, AddressError};
pub use reconnecting::ReconnectingClient;
pub use sharded::ShardedClient;
pub use stream::Compat;

use super::{Client, ClientError};

/// Connects to a server. It is not waited for an answer: a server that accepts and says nothing shows in the first
/// operation.
pub async fn connect(address: &Address) -> Result<Client, ClientError> {
    open(address).await.map_err(|source| ClientError::Connect {
        address: address.to_string(),
        source,
    })
}

async fn open(address: &Address) -> std::io::Result<Client> {
    let client = match address {
        Address::Tcp(host_and_port) => {
            let stream = TcpStream::connect(host_and_port.as_str()).await?;
            stream.set_nodelay(true)?;
            let (reader, writer) = stream.into_split();
            drive(Client::new(Compat::new(reader), Compat::new(writer)))
        }
        Address::Unix(path) => {
            let (reader, writer) = UnixStream::connect(path).await?.into_split();
            drive(Client::new(Compat::new(reader), Compat::new(writer)))
        }
    };
    Ok(client)
}

fn drive(
    (client, driver): (
        Client,
        impl Future<Output = Result<(), ClientError>> + 'static,
    ),
) -> Client {
    // Why the connection ended is told to every operation in flight; nobody joins the driver.
    ::tokio::task::spawn_local(driver);
    client
}

/// Whether an operation has no answer because its connection is of no use any more.
fn broke<T>(answer: &Result<T, ClientError>) -> bool {
    matches!(
        answer,
        Err(ClientError::Disconnected(_) | ClientError::ShuttingDown(_))
    )
}
