//! An internet address as text, byte for byte as std writes it: std's own way, with a buffer to pad it in, is 2 kB more in
//! the shipped file.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

/// An address, to be written.
pub(super) struct Shown(pub(super) SocketAddr);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            SocketAddr::V4(address) => write_ipv4(*address.ip(), f)?,
            SocketAddr::V6(address) => {
                f.write_str("[")?;
                if let Some(mapped) = address.ip().to_ipv4_mapped() {
                    f.write_str("::ffff:")?;
                    write_ipv4(mapped, f)?;
                } else {
                    write_segments(address.ip().segments(), f)?;
                }
                if address.scope_id() != 0 {
                    write!(f, "%{}", address.scope_id())?;
                }
                f.write_str("]")?;
            }
        }
        write!(f, ":{}", self.0.port())
    }
}

fn write_ipv4(address: Ipv4Addr, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let [a, b, c, d] = address.octets();
    write!(f, "{a}.{b}.{c}.{d}")
}

/// The longest part of zeros, the first of several, is left out where it is of two or more (RFC 5952).
fn write_segments(segments: [u16; 8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (mut first, mut longest, mut length) = (0, 1, 0);
    for (index, segment) in segments.into_iter().enumerate() {
        length = if segment == 0 { length + 1 } else { 0 };
        if length > longest {
            (first, longest) = (index + 1 - length, length);
        }
    }
    let is_left_out = |index: usize| longest > 1 && (first..first + longest).contains(&index);
    let mut separator = "";
    for (index, segment) in segments.into_iter().enumerate() {
        if !is_left_out(index) {
            write!(f, "{separator}{segment:x}")?;
            separator = ":";
        } else if index == first {
            f.write_str("::")?;
            separator = "";
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_std_writes_it() {
        for text in [
            "0.0.0.0:0",
            "127.0.0.1:8080",
            "[::]:80",
            "[::1]:65535",
            "[1::]:1",
            "[fe80::1%3]:53",
            "[::ffff:10.0.0.1]:80",
            "[2001:db8:0:1:1:1:1:1]:1",
            "[2001:db8:0:0:1:0:0:1]:1",
            "[1:0:0:2:0:0:0:3]:1",
            "[0:1:2:3:4:5:6:0]:1",
            "[1:2:3:4:5:6:7:8]:1",
            "[1:2:3:4:5:6:0:0]:1",
            "[::1.2.3.4]:1",
        ] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(Shown(address).to_string(), address.to_string());
        }
    }
}
