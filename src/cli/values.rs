//! Reads the values that options take: numbers, durations, addresses. Each error says what the value should be.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::config::{Address, Listen, ListenEnv};
use crate::error::Status;

/// What a reader gives back: the value, or the cause of the refusal.
pub(super) type Read<T> = Result<T, String>;

/// The longest duration that makes sense: ten years. Beyond it sums of times could overflow.
const LONGEST_MS: u64 = 10 * 365 * 24 * 3600 * 1000;

/// `500ms`, `10s`, `5m`, `1h`; a bare number is seconds.
pub(super) fn duration(text: &str) -> Read<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits).unwrap_or_default();
    let factor: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60 * 1000,
        "h" => 3600 * 1000,
        _ => 0,
    };
    let milliseconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    match milliseconds {
        Some(milliseconds) if factor > 0 && milliseconds <= LONGEST_MS => Ok(Duration::from_millis(milliseconds)),
        _ => Err(format!("\"{text}\" is not a duration (write 500ms, 10s, 5m or 1h)")),
    }
}

/// A whole number of any type, by the one reader that the shipped file has.
fn whole<T: TryFrom<u64>>(text: &str) -> Option<T> {
    text.parse::<u64>().ok()?.try_into().ok()
}

/// A whole number from `min` to `max`.
pub(super) fn number(text: &str, min: u32, max: u32) -> Read<u32> {
    match whole(text) {
        Some(number) if (min..=max).contains(&number) => Ok(number),
        _ => Err(format!("\"{text}\" is not a whole number from {min} to {max}")),
    }
}

/// `512M`, `1G`; a bare number is bytes.
pub(super) fn size(text: &str) -> Read<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits).unwrap_or_default();
    let shift = match unit {
        "" => Some(0),
        "K" => Some(10),
        "M" => Some(20),
        "G" => Some(30),
        _ => None,
    };
    let bytes = shift.and_then(|shift| number.parse::<u64>().ok()?.checked_mul(1 << shift));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| format!("\"{text}\" is not a size (write 512M or 1G)"))
}

/// An exit status.
pub(super) fn status(text: &str) -> Read<Status> {
    whole(text).map(Status).ok_or_else(|| format!("\"{text}\" is not an exit status from 0 to 255"))
}

/// A mode in octal, as chmod(1) takes it.
pub(super) fn octal(text: &str) -> Read<u32> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 && !text.starts_with('+') => Ok(mode),
        _ => Err(format!("\"{text}\" is not an octal mode from 0 to 777")),
    }
}

/// `systemd,server-starter,einhorn` or `none`.
pub(super) fn listen_env(text: &str) -> Read<ListenEnv> {
    let mut list = ListenEnv { explicit: true, ..ListenEnv::default() };
    if text == "none" {
        return Ok(list);
    }
    for word in text.split(',') {
        match word {
            "systemd" => list.systemd = true,
            "server-starter" => list.server_starter = true,
            "einhorn" => list.einhorn = true,
            _ => return Err(format!("\"{word}\" is none of systemd, server-starter, einhorn or none")),
        }
    }
    Ok(list)
}

/// `[NAME=]ADDR[?OPTION[&OPTION]...]`
pub(super) fn listen(text: &str) -> Read<Listen> {
    let (name, address) = split_name(text)?;
    let (address, options) = address.split_once('?').unwrap_or((address, ""));
    let mut port_only = false;
    let address = if let Some(path) = address.strip_prefix("unix://") {
        unix(path)?
    } else if let Some(rest) = address.strip_prefix("udp://") {
        Address::Udp(socket_address(rest)?.0)
    } else if let Some((scheme, _)) =
        address.split_once(':').filter(|(scheme, rest)| rest.starts_with("//") && *scheme != "tcp")
    {
        return Err(format!("\"{scheme}://\" is none of tcp://, unix:// and udp://"));
    } else {
        let (address, only) = socket_address(address.strip_prefix("tcp://").unwrap_or(address))?;
        port_only = only;
        Address::Tcp(address)
    };
    let name = name.unwrap_or_else(|| match &address {
        Address::Tcp(address) => format!("tcp-{}", address.port()),
        Address::Udp(address) => format!("udp-{}", address.port()),
        Address::Unix(_) | Address::Abstract(_) => "unix".to_owned(),
    });
    let mut listen =
        Listen { name, address, port_only, mode: None, nonblock: false, v6only: false, typed: text.to_owned() };
    for option in options.split('&').filter(|option| !option.is_empty()) {
        read_listen_option(option, &mut listen)?;
    }
    Ok(listen)
}

fn read_listen_option(option: &str, listen: &mut Listen) -> Read<()> {
    match (option, &listen.address) {
        ("nonblock", _) => listen.nonblock = true,
        ("v6only", Address::Tcp(SocketAddr::V6(_)) | Address::Udp(SocketAddr::V6(_))) => listen.v6only = true,
        ("v6only", _) => return Err("?v6only is for IPv6 addresses".to_owned()),
        _ => match (option.strip_prefix("mode="), &listen.address) {
            (Some(mode), Address::Unix(_)) => listen.mode = Some(octal(mode)?),
            (Some(_), _) => return Err("?mode= is for UNIX paths".to_owned()),
            (None, _) => return Err(format!("\"{option}\" is none of nonblock, v6only and mode=MODE")),
        },
    }
    Ok(())
}

/// Splits `NAME=` off. A name is what `LISTEN_FDNAMES` can hold: no colon, no control character, at most 255 bytes
/// (`sd_listen_fds(3)`); an equals sign after anything else belongs to the address.
fn split_name(text: &str) -> Read<(Option<String>, &str)> {
    match text.split_once('=') {
        Some((name, address)) if !name.contains([':', '/', '?', '[']) => {
            if name.is_empty() || name.len() > 255 || !name.chars().all(|c| c.is_ascii_graphic()) {
                return Err(format!("\"{name}\" is not a name of 1 to 255 printable characters"));
            }
            Ok((Some(name.to_owned()), address))
        }
        _ => Ok((None, text)),
    }
}

/// The longest path that fits in `sun_path` with its end (`unix(7)`).
const LONGEST_UNIX_PATH: usize = 107;

fn unix(path: &str) -> Read<Address> {
    if path.len() > LONGEST_UNIX_PATH {
        return Err(format!("a UNIX address has at most {LONGEST_UNIX_PATH} bytes, this one {}", path.len()));
    }
    match path.strip_prefix('@') {
        Some("") => Err("the abstract name is empty".to_owned()),
        Some(name) => Ok(Address::Abstract(name.to_owned())),
        // panzer works in `/`, so a relative path would not be what was meant.
        None if path.starts_with('/') => Ok(Address::Unix(PathBuf::from(path))),
        None => Err(format!("\"{path}\" is not an absolute path (write unix:///run/app.sock)")),
    }
}

/// `8080`, `:8080`, `127.0.0.1:8080`, `[::1]:8080`; and whether only a port was given.
fn socket_address(text: &str) -> Read<(SocketAddr, bool)> {
    let port = text.strip_prefix(':').unwrap_or(text);
    if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) {
        let port = whole(port).ok_or_else(|| format!("\"{port}\" is not a port from 0 to 65535"))?;
        return Ok((SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port), true));
    }
    let address = text.parse::<SocketAddr>();
    address.map(|address| (address, false)).map_err(|_| {
        format!("\"{text}\" is not an address (write 8080, 127.0.0.1:8080, [::]:8080 or unix:///run/app.sock; host names are not resolved)")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in
            [("500ms", 500), ("10s", 10_000), ("10", 10_000), ("5m", 300_000), ("1h", 3_600_000), ("0", 0)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "1x", "-1", "1.5s", " 1", "1 s", "99999999999999999999", "999999999h", "１s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("1", 1), ("4K", 4096), ("512M", 512 << 20), ("2G", 2 << 30)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "0", "0M", "M", "1T", "1m", "-1", "1.5G", "99999999999G", " 1G"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses() {
        let address = |text: &str| listen(text).map(|listen| listen.address);
        let tcp = |text: &str| Ok(Address::Tcp(text.parse().unwrap()));
        for text in ["8080", ":8080", "tcp://8080", "tcp://:8080", "tcp://0.0.0.0:8080", "web=8080"] {
            assert_eq!(address(text), tcp("0.0.0.0:8080"), "{text}");
        }
        assert_eq!(address("tcp://[::]:80?v6only"), tcp("[::]:80"));
        assert_eq!(address("dns=udp://[::1]:53"), Ok(Address::Udp("[::1]:53".parse().unwrap())));
        assert_eq!(address("unix:///run/a=b.sock?mode=660"), Ok(Address::Unix("/run/a=b.sock".into())));
        assert_eq!(address("unix://@app"), Ok(Address::Abstract("app".to_owned())));
    }

    #[test]
    fn names_and_options_of_addresses() {
        let web = listen("web=unix:///run/a.sock?mode=660&nonblock").unwrap();
        assert_eq!((web.name.as_str(), web.mode, web.nonblock), ("web", Some(0o660), true));
        assert_eq!(listen("8080").unwrap().name, "tcp-8080");
        assert!(listen("8080").unwrap().port_only && !listen("0.0.0.0:8080").unwrap().port_only);
    }

    #[test]
    fn bad_addresses_are_refused_with_a_cause() {
        let long = format!("unix:///{}", "x".repeat(107));
        for text in [
            "",
            "=8080",
            "65536",
            "localhost:80",
            "tcp://",
            "http://1.2.3.4:80",
            "unix://run/x",
            "unix://@",
            "1.2.3.4",
            "8080?mode=660",
            "8080?v6only",
            "8080?bogus",
            "unix:///x?mode=999",
            "[::1%lo]:80",
            long.as_str(),
        ] {
            assert!(!listen(text).unwrap_err().is_empty(), "{text}");
        }
    }

    #[test]
    fn conventions() {
        assert_eq!(listen_env("none"), Ok(ListenEnv { explicit: true, ..ListenEnv::default() }));
        assert!(listen_env("systemd,einhorn").is_ok_and(|l| l.systemd && l.einhorn && !l.server_starter));
        assert!(listen_env("systemd,").is_err() && listen_env("").is_err());
    }

    #[test]
    fn modes_and_numbers() {
        assert_eq!(octal("022"), Ok(0o022));
        assert!(octal("8").is_err() && octal("1777").is_err() && octal("").is_err() && octal("+7").is_err());
        assert!(number("0", 1, 9).is_err() && number("1e3", 1, 9).is_err() && number("9", 1, 9) == Ok(9));
    }
}
