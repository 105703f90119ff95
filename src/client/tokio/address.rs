//! Where a server listens, as people write it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The address of a server: `HOST:PORT` or `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A host name or IP address and a port, as `127.0.0.1:6000`, `[::1]:6000` or `localhost:6000`.
    Tcp(String),
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl Address {
    /// The address of another port of the same host; a unix socket has no host.
    pub(super) fn with_port(&self, port: u16) -> Option<Self> {
        match self {
            Self::Tcp(host_and_port) => {
                let (host, _) = host_and_port.rsplit_once(':')?;
                Some(Self::Tcp(format!("{host}:{port}")))
            }
            Self::Unix(_) => None,
        }
    }
}

/// A text that is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address: give HOST:PORT, as 127.0.0.1:6000, or unix:PATH")]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let refused = || AddressError(text.to_string());
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() {
                Err(refused())
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(refused)?;
        let bare_ipv6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
        if host.is_empty() || bare_ipv6 || port.parse::<u16>().is_err() {
            return Err(refused());
        }
        Ok(Self::Tcp(text.to_string()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host_and_port) => f.write_str(host_and_port),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown() {
        for text in [
            "127.0.0.1:6000",
            "[::1]:6000",
            "localhost:0",
            "unix:/run/orlop.sock",
            "unix:x:1",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("unix:a b".parse(), Ok(Address::Unix("a b".into())));
    }

    #[test]
    fn another_port_is_one_of_the_same_host() {
        let other = |text: &str| text.parse::<Address>().unwrap().with_port(7001);
        for (text, expected) in [
            ("127.0.0.1:6000", "127.0.0.1:7001"),
            ("[::1]:6000", "[::1]:7001"),
            ("localhost:0", "localhost:7001"),
        ] {
            assert_eq!(other(text).unwrap().to_string(), expected);
        }
        assert_eq!(other("unix:/run/orlop.sock"), None);
    }

    #[test]
    fn other_texts_are_refused_with_advice() {
        for text in [
            "",
            "localhost",
            ":6000",
            "localhost:",
            "localhost:65536",
            "::1:6000",
            "unix:",
            "host:x",
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{text:?} is no address")),
                "{error}"
            );
            assert!(error.contains("unix:PATH"));
        }
    }
}
