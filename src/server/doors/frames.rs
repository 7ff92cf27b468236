//! The frames of HTTP/2 as they pass (RFC 9113 §4): where each begins and ends, and of what kind it is. What is in them is for
//! `h2`.

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Why a stream or a connection is ended (RFC 9113 §7).
pub const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
pub const REFUSED_STREAM: u32 = 7;
pub const ENHANCE_YOUR_CALM: u32 = 11;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const HEAD: usize = 9;
/// What a client sends before its first (RFC 9113 §3.4).
pub const PREFACE: usize = 24;

#[derive(Debug, Clone, Copy, Default)]
pub struct Frame {
    pub kind: u8,
    flags: u8,
    pub stream: u32,
    pub length: usize,
    /// How its payload begins.
    first: [u8; 8],
}

#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    Head,
    /// So many bytes of its payload.
    Payload(usize),
    Whole,
}

/// Those of one direction.
#[derive(Debug, Default)]
pub struct Frames {
    skip: usize,
    head: [u8; HEAD],
    /// Bytes of the head.
    have: usize,
    frame: Frame,
    /// Bytes of the payload that are still to come.
    left: usize,
}

impl Frame {
    pub fn ends_stream(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }

    pub fn ends_headers(&self) -> bool {
        matches!(self.kind, HEADERS | CONTINUATION) && self.flags & END_HEADERS != 0
    }

    pub fn asks(&self) -> bool {
        self.kind == PING && self.flags & ACK == 0
    }

    pub fn answers(&self) -> bool {
        self.kind == PING && self.flags & ACK != 0
    }

    /// Of a `WINDOW_UPDATE`.
    pub fn increment(&self) -> u32 {
        self.reason() & 0x7fff_ffff
    }

    /// Of a `RST_STREAM`.
    pub fn reason(&self) -> u32 {
        let [a, b, c, d, ..] = self.first;
        u32::from_be_bytes([a, b, c, d])
    }

    /// Whether a `RST_STREAM` is for what came on the stream.
    pub fn blames_peer(&self) -> bool {
        matches!(self.reason(), PROTOCOL_ERROR | FLOW_CONTROL_ERROR | STREAM_CLOSED | FRAME_SIZE_ERROR)
    }

    /// Of a `GOAWAY`.
    pub fn error(&self) -> u32 {
        let [.., a, b, c, d] = self.first;
        u32::from_be_bytes([a, b, c, d])
    }

    fn of([a, b, c, kind, flags, stream @ ..]: [u8; HEAD]) -> Self {
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let stream = u32::from_be_bytes(stream) & 0x7fff_ffff;
        Self { kind, flags, stream, length, first: [0; 8] }
    }
}

impl Frames {
    /// Those of a client.
    pub fn after_preface() -> Self {
        Self { skip: PREFACE, ..Self::default() }
    }

    /// The next that can be told from these bytes, which it takes from their front. `None`: all of them were taken.
    pub fn next(&mut self, bytes: &mut &[u8]) -> Option<(Frame, Seen)> {
        self.skip -= take(bytes, self.skip).len();
        if self.have < HEAD {
            let begun = take(bytes, HEAD - self.have);
            for (place, byte) in self.head.iter_mut().skip(self.have).zip(begun) {
                *place = *byte;
            }
            self.have += begun.len();
            if self.have < HEAD {
                return None;
            }
            self.frame = Frame::of(self.head);
            self.left = self.frame.length;
            return Some((self.frame, Seen::Head));
        }
        if self.left == 0 {
            self.have = 0;
            return Some((self.frame, Seen::Whole));
        }
        let piece = take(bytes, self.left);
        let at = self.frame.length - self.left;
        for (place, byte) in self.frame.first.iter_mut().skip(at).zip(piece) {
            *place = *byte;
        }
        self.left -= piece.len();
        (!piece.is_empty()).then_some((self.frame, Seen::Payload(piece.len())))
    }
}

/// Up to `most` from the front.
fn take<'b>(bytes: &mut &'b [u8], most: usize) -> &'b [u8] {
    let (taken, rest) = bytes.split_at(most.min(bytes.len()));
    *bytes = rest;
    taken
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn in_whatever_pieces_they_come_they_are_the_same() {
        let mut sent = vec![b'*'; PREFACE];
        sent.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
        sent.extend([0, 0, 4, WINDOW_UPDATE, 0, 0x80, 0, 0, 5, 0x80, 0, 1, 2]);
        sent.extend([0, 0, 10, GOAWAY, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 11, b'h', b'i']);
        sent.extend([0, 0, 3, HEADERS, END_HEADERS | END_STREAM, 0, 0, 0, 7, 1, 2, 3]);
        for size in 1..=sent.len() {
            let (mut frames, mut whole, mut payload) = (Frames::after_preface(), Vec::new(), 0);
            for mut piece in sent.chunks(size) {
                while let Some((frame, seen)) = frames.next(&mut piece) {
                    match seen {
                        Seen::Head => {}
                        Seen::Payload(length) => payload += length,
                        Seen::Whole => whole.push(frame),
                    }
                }
                assert!(piece.is_empty());
            }
            let kinds: Vec<_> = whole.iter().map(|frame| (frame.kind, frame.stream, frame.length)).collect();
            assert_eq!(kinds, [(4, 0, 0), (WINDOW_UPDATE, 5, 4), (GOAWAY, 0, 10), (HEADERS, 7, 3)], "{size}");
            assert_eq!((payload, whole[1].increment(), whole[2].error()), (17, 258, 11));
            assert!(whole[3].ends_stream() && whole[3].ends_headers());
        }
    }
}
