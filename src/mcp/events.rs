//! A stream of server-sent events, taken apart into events as it comes, in pieces of any size (WHATWG HTML §9.2).
//!
//! What goes on is whole events, byte for byte as they came unless their data is replaced; comments between them go on at
//! once, since they keep connections open. What never became an event goes nowhere: no client would take it for one.
use std::borrow::Cow;
use std::ops::Range;

use memchr::{memchr, memchr2};

use super::message::Unreadable;

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Gives the data of an event another text. `None`: it stays.
pub type Replace<'r> = dyn FnMut(&str) -> Result<Option<String>, Unreadable> + 'r;

/// What is still to become an event.
#[derive(Debug)]
pub struct Events {
    pending: Vec<u8>,
    /// So much of it is whole lines, bytes.
    lines: usize,
    /// So much of it was looked at, bytes.
    seen: usize,
    longest: usize,
    /// Whether a byte order mark may still come.
    is_beginning: bool,
    /// The last line ended in a carriage return: a line feed behind it is its own.
    after_return: bool,
}

/// Why a stream cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("an event is too long")]
    TooLong,
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

impl Events {
    /// `longest`: no event may be longer than that, bytes.
    pub fn new(longest: usize) -> Self {
        let pending = Vec::new();
        Self { pending, lines: 0, seen: 0, longest, is_beginning: true, after_return: false }
    }

    /// What goes on now that this has come.
    pub fn push(&mut self, piece: &[u8], replace: &mut Replace<'_>) -> Result<Vec<u8>, Broken> {
        let mut out = Vec::new();
        self.take(piece, &mut out);
        let mut begin = 0;
        while let Some(line) = self.next_line() {
            let is_between = line.start == begin;
            let is_comment = self.pending.get(line.start) == Some(&b':');
            if !is_between && line.is_empty() {
                let event = self.pending.get(begin..self.lines).unwrap_or_default();
                if event.len() > self.longest {
                    return Err(Broken::TooLong);
                }
                pass(event, replace, &mut out)?;
                begin = self.lines;
            } else if is_between && (line.is_empty() || is_comment) {
                out.extend_from_slice(self.pending.get(begin..self.lines).unwrap_or_default());
                begin = self.lines;
            }
        }
        self.pending.drain(..begin);
        self.lines -= begin;
        self.seen -= begin;
        if self.pending.len() > self.longest {
            return Err(Broken::TooLong);
        }
        Ok(out)
    }

    /// What belongs to nothing that is still to come goes out.
    fn take(&mut self, mut piece: &[u8], out: &mut Vec<u8>) {
        if self.after_return
            && let Some((b'\n', rest)) = piece.split_first()
        {
            match self.pending.is_empty() {
                true => out.push(b'\n'),
                false => self.pending.push(b'\n'),
            }
            self.lines = self.pending.len();
            self.seen = self.lines;
            piece = rest;
            self.after_return = false;
        }
        self.after_return &= piece.is_empty();
        self.pending.extend_from_slice(piece);
        if self.is_beginning && self.pending.starts_with(BYTE_ORDER_MARK) {
            out.extend(self.pending.drain(..BYTE_ORDER_MARK.len()));
            self.seen = 0;
            self.is_beginning = false;
        }
        self.is_beginning &= BYTE_ORDER_MARK.starts_with(&self.pending);
    }

    /// Where the next whole line stands, without its end.
    fn next_line(&mut self) -> Option<Range<usize>> {
        let unseen = self.pending.get(self.seen..).unwrap_or_default();
        let Some(length) = memchr2(b'\r', b'\n', unseen) else {
            self.seen = self.pending.len();
            return None;
        };
        let line = self.lines..self.seen + length;
        let end = self.pending.get(line.end..).unwrap_or_default();
        self.after_return = end == b"\r";
        self.lines = line.end + if end.starts_with(b"\r\n") { 2 } else { 1 };
        self.seen = self.lines;
        Some(line)
    }
}

/// Lets one event go on, which ends in its empty line.
fn pass(event: &[u8], replace: &mut Replace<'_>, out: &mut Vec<u8>) -> Result<(), Broken> {
    let mut data: Option<Cow<'_, [u8]>> = None;
    let mut left = 0;
    for (line, _) in lines(event) {
        let (name, value) = field(line);
        if name == b"data" {
            left += 1;
            match &mut data {
                None => data = Some(Cow::Borrowed(value)),
                Some(data) => {
                    let data = data.to_mut();
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
            }
        } else if is_variant_of_data(name) {
            return Err(Unreadable::Ambiguous.into());
        }
    }
    let data = data.unwrap_or_default();
    let replaced = match std::str::from_utf8(&data) {
        Ok(text) => replace(text)?,
        Err(_) if data.contains(&b'{') => return Err(Unreadable::Ambiguous.into()),
        Err(_) => None,
    };
    let Some(text) = replaced else {
        out.extend_from_slice(event);
        return Ok(());
    };
    // In the place of the last of its lines, so that no return meets the line feed of an empty line behind it.
    for (line, end) in lines(event) {
        if field(line).0 != b"data" {
            out.extend_from_slice(line);
        } else {
            left -= 1;
            if left > 0 {
                continue;
            }
            out.extend_from_slice(b"data: ");
            // Between the tokens of JSON any space will do, and there are no line ends within one.
            out.extend(text.bytes().map(|byte| if byte == b'\n' { b' ' } else { byte }));
        }
        out.extend_from_slice(end);
    }
    Ok(())
}

/// The lines of a text that ends in a line end, each with its end.
fn lines(mut text: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    std::iter::from_fn(move || {
        let (line, rest) = text.split_at_checked(memchr2(b'\r', b'\n', text)?)?;
        let (end, rest) = rest.split_at_checked(if rest.starts_with(b"\r\n") { 2 } else { 1 })?;
        text = rest;
        Some((line, end))
    })
}

/// Name and value of a line.
fn field(line: &[u8]) -> (&[u8], &[u8]) {
    let (name, value) = memchr(b':', line).and_then(|at| line.split_at_checked(at)).unwrap_or((line, b""));
    let value = value.strip_prefix(b":").unwrap_or(value);
    (name, value.strip_prefix(b" ").unwrap_or(value))
}

/// Whether somebody may take this for `data`, which it is not.
fn is_variant_of_data(name: &[u8]) -> bool {
    name.strip_prefix(BYTE_ORDER_MARK).unwrap_or(name).trim_ascii().eq_ignore_ascii_case(b"data")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use proptest::prelude::*;

    use super::*;

    const LONGEST: usize = 200;

    /// Puts `new` in the place of data that has an `old` in it.
    fn replaced(text: &str) -> Result<Option<String>, Unreadable> {
        match text.contains("refused") {
            true => Err(Unreadable::Ambiguous),
            false => Ok(text.contains("old").then(|| text.replace("old", "new"))),
        }
    }

    /// What goes on of a stream that comes in pieces of these lengths.
    fn passed(stream: &[u8], mut length: impl FnMut() -> usize) -> Result<Vec<u8>, Broken> {
        let (mut events, mut out, mut rest) = (Events::new(LONGEST), Vec::new(), stream);
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(length().clamp(1, rest.len()));
            out.extend(events.push(piece, &mut replaced)?);
            rest = more;
        }
        Ok(out)
    }

    #[track_caller]
    fn passes(stream: &str, expected: &str) {
        for length in [1, 2, 3, 5, 7, 1000] {
            let out = passed(stream.as_bytes(), || length).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), expected, "in pieces of {length}");
        }
    }

    #[test]
    fn events_go_on_as_they_came() {
        for stream in [
            "event: message\ndata: {}\n\n",
            "data:{}\r\n\r\ndata\r\n\r\n",
            "id: 1\rdata: a\rdata: b\r\rretry: 5\r\r",
            "\u{feff}data: x\n\n",
            "\u{feff}\n\n\n",
            "data: x\r\n\n\r\n\rdata: y\n\r",
            ": only a comment\n\n:\n\n",
            "id\nunknown: {}\n: within\ndata:  two spaces \n\n",
        ] {
            passes(stream, stream);
        }
    }

    #[test]
    fn an_event_with_another_data_keeps_its_other_lines_and_its_line_ends() {
        passes("data: old\n\n", "data: new\n\n");
        passes("id: 7\r\ndata:old\r\nevent: message\r\n\r\n", "id: 7\r\ndata: new\r\nevent: message\r\n\r\n");
        passes("id: 7\rdata: an\r: c\rdata:  old\rretry: 1\r\r", "id: 7\r: c\rdata: an  new\rretry: 1\r\r");
        passes("data: x\n\ndata: old\n\ndata: y\n\n", "data: x\n\ndata: new\n\ndata: y\n\n");
        passes("\u{feff}data: old\n\n", "\u{feff}data: new\n\n");
        passes("data\ndata: old\n\n", "data:  new\n\n");
        passes("data: x\rdata: old\n\n", "data: x new\n\n");
    }

    #[test]
    fn half_an_event_never_leaves() {
        passes("data: x\n\nid: 2\ndata: y\n", "data: x\n\n");
        passes("data: x", "");
        passes("data: x\n\n\ndata: y\r", "data: x\n\n\n");
        passes("\u{feff}data: x\n", "\u{feff}");
    }

    #[test]
    fn a_comment_between_events_goes_on_at_once() {
        let mut events = Events::new(LONGEST);
        let mut push = |piece: &str| events.push(piece.as_bytes(), &mut replaced).unwrap();
        assert_eq!(push(": alive\n"), b": alive\n");
        assert_eq!(push("data: x\n"), b"");
        assert_eq!(push(": alive\n"), b"");
        assert_eq!(push("\n"), b"data: x\n: alive\n\n");
        assert_eq!(push(": still\r"), b": still\r");
        assert_eq!(push("\n"), b"\n");
        assert_eq!(push(":\r"), b":\r");
        assert_eq!(push("data: y\n\n"), b"data: y\n\n");
    }

    #[test]
    fn an_event_has_the_room_it_has() {
        let event = |length: usize| format!("data: {}\n\n", "x".repeat(length - 8));
        passes(&event(LONGEST).repeat(3), &event(LONGEST).repeat(3));
        for length in [1, 50, 1000] {
            let all = passed(event(LONGEST + 1).as_bytes(), || length);
            assert_eq!(all, Err(Broken::TooLong), "in pieces of {length}");
            let half = passed("x".repeat(LONGEST + 1).as_bytes(), || length);
            assert_eq!(half, Err(Broken::TooLong), "in pieces of {length}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_ends_the_stream() {
        for event in [
            &b"data: refused\n\n"[..],
            b"data: ref\rdata: x\r\ndata: {}\nDATA: {}\n\n",
            b" data: {}\n\n",
            b"data : {}\n\n",
            b"\xEF\xBB\xBF\xEF\xBB\xBFdata: {}\n\n",
            b"id: 1\n\xEF\xBB\xBFdata: {}\n\n",
            b"data: {\xFF}\n\n",
        ] {
            for length in [1, 3, 100] {
                let broken = Err(Broken::Unreadable(Unreadable::Ambiguous));
                assert_eq!(passed(event, || length), broken, "{event:?}");
            }
        }
        let no_text = b"data: \xFF\n\n";
        assert_eq!(passed(no_text, || 1).unwrap(), no_text);
    }

    /// How a client reads a stream: the data of each event (WHATWG HTML §9.2.6).
    fn read(stream: &str) -> Vec<String> {
        let stream = stream.strip_prefix('\u{feff}').unwrap_or(stream);
        let stream = stream.replace("\r\n", "\n").replace('\r', "\n");
        let (mut events, mut data) = (Vec::new(), Vec::new());
        let (complete, _) = stream.rsplit_once('\n').unwrap_or_default();
        for line in complete.split('\n') {
            if line.is_empty() {
                events.extend((!data.is_empty()).then(|| data.join("\n")));
                data.clear();
            } else if let Some(value) = line.strip_prefix("data:") {
                data.push(value.strip_prefix(' ').unwrap_or(value).to_owned());
            } else if line == "data" {
                data.push(String::new());
            }
        }
        events
    }

    fn streams() -> impl Strategy<Value = String> {
        let line = prop_oneof![
            Just("data: old".to_owned()),
            Just("data:{\"a\":1}".to_owned()),
            Just("data".to_owned()),
            Just("data: x".to_owned()),
            Just(": comment".to_owned()),
            Just("id: 1".to_owned()),
            Just("old: x".to_owned()),
            Just(String::new()),
            Just(String::new()),
            "[a-c: é]{0,8}",
        ];
        let end = prop_oneof![Just("\n"), Just("\r\n"), Just("\r")];
        let lines = prop::collection::vec((line, end), 0..20);
        (any::<bool>(), lines, "[a:]{0,3}").prop_map(|(mark, lines, rest)| {
            let lines: String = lines.into_iter().map(|(line, end)| line + end).collect();
            format!("{}{lines}{rest}", if mark { "\u{feff}" } else { "" })
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn a_client_reads_the_same_events_with_their_new_data(
            stream in streams(),
            lengths in prop::collection::vec(1_usize..20, 1..10),
        ) {
            let mut lengths = lengths.into_iter().cycle();
            let out = passed(stream.as_bytes(), || lengths.next().unwrap()).unwrap();
            let out = String::from_utf8(out).unwrap();
            let expected: Vec<String> = read(&stream)
                .into_iter()
                .map(|data| if data.contains("old") { data.replace("old", "new").replace('\n', " ") } else { data })
                .collect();
            prop_assert_eq!(read(&out), expected);
            // And where nothing was replaced, the bytes are those that came.
            if !stream.contains("data: old") {
                prop_assert!(stream.starts_with(&out), "{stream:?} {out:?}");
            }
        }
    }
}
