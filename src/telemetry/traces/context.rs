//! `traceparent` (W3C Trace Context, §3.2): read from a client, written for an upstream.
use data_encoding::HEXLOWER;
use http::{HeaderMap, HeaderName, HeaderValue};

pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// What a client says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    pub trace: [u8; 16],
    pub parent: [u8; 8],
    /// Whether it is recorded there.
    pub is_sampled: bool,
}

/// The trace that a request is recorded in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    pub id: [u8; 16],
    /// The client's span. `None`: the trace begins here.
    pub parent: Option<[u8; 8]>,
    /// Our span of the whole request.
    pub request: [u8; 8],
    /// Within it, that of the call to the upstream, which goes on from it.
    pub call: [u8; 8],
}

/// What the headers of a request say. `None`: nothing, or nothing that can be gone by.
pub fn read(headers: &HeaderMap) -> Option<Parent> {
    let mut values = headers.get_all(TRACEPARENT).iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    parse(value.as_bytes())
}

/// `VERSION-TRACE-PARENT-FLAGS`. Later versions may say more behind it.
fn parse(text: &[u8]) -> Option<Parent> {
    let (version, rest) = text.split_at_checked(2)?;
    let [version] = hex::<1>(version)?;
    let (trace, rest) = after_dash(rest)?.split_at_checked(32)?;
    let (parent, rest) = after_dash(rest)?.split_at_checked(16)?;
    let (flags, rest) = after_dash(rest)?.split_at_checked(2)?;
    let is_whole = match version {
        0 => rest.is_empty(),
        0xff => false,
        _ => rest.is_empty() || rest.first() == Some(&b'-'),
    };
    let (trace, parent, [flags]) = (hex::<16>(trace)?, hex::<8>(parent)?, hex::<1>(flags)?);
    let is_meant = is_whole && trace != [0; 16] && parent != [0; 8];
    is_meant.then_some(Parent { trace, parent, is_sampled: flags & 1 == 1 })
}

fn after_dash(text: &[u8]) -> Option<&[u8]> {
    text.strip_prefix(b"-")
}

/// Bytes in lower case, the only one there is here.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let is_whole = HEXLOWER.decode_len(text.len()) == Ok(N);
    (is_whole && HEXLOWER.decode_mut(text, &mut bytes).is_ok()).then_some(bytes)
}

// === impl Trace ===

impl Trace {
    /// Tells the upstream that it is called from within our span. What came from the client without a parent that can be gone by
    /// is of no trace (§4.3).
    pub fn send(&self, headers: &mut HeaderMap) {
        if self.parent.is_none() {
            headers.remove(TRACESTATE);
        }
        let text = format!("00-{}-{}-01", HEXLOWER.encode(&self.id), HEXLOWER.encode(&self.call));
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(TRACEPARENT, value);
        }
    }

    /// As people look for it.
    pub fn name(&self) -> String {
        HEXLOWER.encode(&self.id)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_can_be_gone_by_is_read() {
        let read = parse(GOOD.as_bytes()).unwrap();
        assert_eq!((read.trace[0], read.parent[7], read.is_sampled), (0x0a, 0x31, true));
        assert!(!parse(GOOD.replace("-01", "-00").as_bytes()).unwrap().is_sampled);
        assert!(!parse(GOOD.replace("-01", "-02").as_bytes()).unwrap().is_sampled);
        // A later version may say more.
        for later in [
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what",
        ] {
            assert_eq!(parse(later.as_bytes()), Some(read), "{later}");
        }
    }

    #[test]
    fn what_cannot_is_as_if_it_were_not_there() {
        for bad in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b71692033311-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01more",
            "00_0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331_01",
            "00-0af7651916cd43dd8448eb211c8031\u{e9}-b7ad6b7169203331-01",
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
        let twice = HeaderMap::from_iter(
            [(TRACEPARENT, GOOD), (TRACEPARENT, GOOD)]
                .map(|(name, value)| (name, HeaderValue::from_static(value))),
        );
        let mut both = HeaderMap::new();
        both.append(TRACEPARENT, HeaderValue::from_static(GOOD));
        assert!(read(&both).is_some());
        both.append(TRACEPARENT, HeaderValue::from_static(GOOD));
        assert_eq!(read(&both), None, "{twice:?}");
    }

    #[test]
    fn an_upstream_goes_on_from_our_span_and_hears_no_state_of_a_trace_that_it_is_not_in() {
        let trace = Trace { id: [1; 16], parent: Some([2; 8]), request: [3; 8], call: [4; 8] };
        let mut headers = HeaderMap::from_iter([
            (TRACEPARENT, HeaderValue::from_static(GOOD)),
            (TRACESTATE, HeaderValue::from_static("a=b")),
        ]);
        trace.send(&mut headers);
        assert_eq!(headers[TRACEPARENT], "00-01010101010101010101010101010101-0404040404040404-01");
        assert_eq!(headers[TRACESTATE], "a=b");
        Trace { parent: None, ..trace }.send(&mut headers);
        assert!(!headers.contains_key(TRACESTATE));
    }
}
