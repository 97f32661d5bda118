//! The `Transport` header, as far as records need it, for both sides of the connection: RTP in interleaved frames, to one
//! receiver (RFC 2326 §12.39, RFC 7826 §18.54).

/// Most alternatives that are looked at.
const ALTERNATIVES_MAX: usize = 16;

/// An alternative of a `Transport` header that records can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interleaved {
    /// Channel of the records, if one is named.
    pub channel: Option<u8>,
}

/// The first alternative of the header that is RTP over the connection itself.
pub fn interleaved(header: &str) -> Option<Interleaved> {
    header.split(',').take(ALTERNATIVES_MAX).find_map(alternative)
}

fn alternative(text: &str) -> Option<Interleaved> {
    let mut parameters = text.split(';').map(str::trim);
    if !parameters.next()?.eq_ignore_ascii_case("RTP/AVP/TCP") {
        return None;
    }
    let mut channel = None;
    for parameter in parameters {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let value = value.trim().trim_matches('"');
        match name.trim().to_ascii_lowercase().as_str() {
            "multicast" => return None,
            "mode" if !value.eq_ignore_ascii_case("play") => return None,
            "interleaved" => {
                let first = value.split('-').next().unwrap_or_default();
                channel = Some(first.parse().ok()?);
            }
            _ => {}
        }
    }
    Some(Interleaved { channel })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_alternative_that_fits_is_taken() {
        for (header, channel) in [
            ("RTP/AVP/TCP;unicast;interleaved=4-5", Some(4)),
            ("rtp/avp/tcp; unicast; Interleaved=\"0-1\"; mode=\"PLAY\"", Some(0)),
            ("RTP/AVP/UDP;unicast;client_port=5000-5001, RTP/AVP/TCP;unicast", None),
            ("RTP/AVP/TCP;interleaved=255", Some(255)),
            ("RTP/AVP/TCP;multicast;interleaved=0-1,RTP/AVP/TCP;interleaved=2-3", Some(2)),
        ] {
            assert_eq!(interleaved(header), Some(Interleaved { channel }), "{header}");
        }
    }

    #[test]
    fn others_are_not() {
        for header in [
            "",
            ";;;",
            "RTP/AVP;unicast;client_port=1-2",
            "RTP/AVP/UDP;unicast",
            "RTP/SAVP/TCP;interleaved=0-1",
            "RTP/AVP/TCP;interleaved=256",
            "RTP/AVP/TCP;interleaved=",
            "RTP/AVP/TCP;interleaved=0-1;mode=RECORD",
            "RAW/RAW/UDP",
        ] {
            assert_eq!(interleaved(header), None, "{header}");
        }
    }
}
