//! How far the header of a request over HTTP/1.1 has come, and whether it keeps within bounds. Pingora reads it, but gives each
//! piece of it as long as the whole; so it is handed over when it is complete.
use std::time::Duration;

use memchr::memchr_iter;

use crate::config::Limits;

/// What one header may have.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub time: Duration,
    size: usize,
    fields: usize,
}

/// How many bytes of it were looked at, and what was found there.
#[derive(Default)]
pub struct Header {
    begun: bool,
    seen: usize,
    lines: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    Partial,
    Whole,
    TooLong,
    TooMany,
}

impl From<&Limits> for Bounds {
    fn from(limits: &Limits) -> Self {
        Self { time: limits.header_time, size: limits.header_size, fields: limits.header_fields }
    }
}

impl Header {
    /// Looks at what has come since. `read`: all of it.
    pub fn look(&mut self, read: &[u8], bounds: &Bounds) -> Progress {
        // Empty lines before it do not count (RFC 9112 §2.2).
        if !self.begun {
            let is_empty = |byte: &&u8| matches!(byte, b'\r' | b'\n');
            self.seen += read.iter().skip(self.seen).take_while(is_empty).count();
            self.begun = self.seen < read.len();
        }
        let (from, mut end) = (self.seen, None);
        self.seen = read.len();
        for at in memchr_iter(b'\n', read.get(from..).unwrap_or_default()).map(|at| from + at) {
            match read.get(at + 1..) {
                Some([b'\n', ..] | [b'\r', b'\n', ..]) => end = Some(at),
                // What follows decides, and is not here yet.
                Some([] | [b'\r']) | None => {
                    self.seen = at;
                    break;
                }
                Some(_) => {}
            }
            self.lines += 1;
            if end.is_some() {
                break;
            }
        }
        // The first line is the request's own.
        match end {
            _ if end.unwrap_or(read.len()) > bounds.size => Progress::TooLong,
            _ if self.lines > bounds.fields + 1 => Progress::TooMany,
            Some(_) => Progress::Whole,
            None => Progress::Partial,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    const BOUNDS: Bounds = Bounds { time: Duration::ZERO, size: 100, fields: 3 };

    #[test]
    fn in_whatever_pieces_it_comes_its_end_is_seen_when_it_is_there() {
        for (head, progress) in [
            ("GET / HTTP/1.1\r\nhost: x\r\n\r\n", Progress::Whole),
            ("\r\n\r\n\nGET / HTTP/1.1\r\nhost: x\r\n\r\n", Progress::Whole),
            ("GET / HTTP/1.1\nhost: x\n\n", Progress::Whole),
            ("GET / HTTP/1.1\nhost: x\n\r\n", Progress::Whole),
            ("GET / HTTP/1.1\r\na: b\r\na: b\r\na: b\r\n\r\n", Progress::Whole),
            ("GET / HTTP/1.1\r\na: b\r\na: b\r\na: b\r\na: b\r\n\r\n", Progress::TooMany),
        ] {
            for size in 1..=head.len() {
                let mut header = Header::default();
                for end in (0..head.len()).step_by(size) {
                    let found = header.look(&head.as_bytes()[..end], &BOUNDS);
                    assert!(found == Progress::Partial || found == Progress::TooMany, "{head:?} {end}");
                }
                assert_eq!(header.look(head.as_bytes(), &BOUNDS), progress, "{head:?} by {size}");
            }
        }
    }

    #[test]
    fn one_without_end_is_too_long_and_one_with_a_long_body_is_not() {
        let long = format!("GET / HTTP/1.1\r\na: {}", "b".repeat(100));
        assert_eq!(Header::default().look(long.as_bytes(), &BOUNDS), Progress::TooLong);
        assert_eq!(Header::default().look(&b"\r\n".repeat(60), &BOUNDS), Progress::TooLong);
        let short = format!("GET / HTTP/1.1\r\na: b\r\n\r\n{}", "\n".repeat(1000));
        assert_eq!(Header::default().look(short.as_bytes(), &BOUNDS), Progress::Whole);
    }
}
